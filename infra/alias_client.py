"""MLflow's calls for aliases, by plain HTTP where a server answers and by its tables where none does: importing its
client takes longer than the move."""

import json
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlencode

from infra.errors import InfraError, RefusedError, UnreachableError
from infra.settings import settings
from infra.stored_aliases import StoredAliases, has_tables


class AliasClient(Protocol):
    """The part of MLflow's client that moves an alias."""

    def get_model_version_by_alias(self, name: str, alias: str) -> Any: ...
    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None: ...
    def delete_registered_model_alias(self, name: str, alias: str) -> None: ...
    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None: ...
    def delete_model_version_tag(self, name: str, version: str, key: str) -> None: ...


def open_client() -> AliasClient:
    """By HTTP to the settings' server, or to the one that `deciduous up` started; else by the tables of MLflow's
    database, or by its own client where those are not there yet, or not as this code knows them."""
    address = settings().mlflow_tracking_uri
    if address.startswith(("http:", "https:")):
        return ServedAliases(address.rstrip("/"))
    from infra.services import find_service  # noqa: PLC0415  psutil is of no use to a server by its address

    served = find_service(settings().home, "mlflow")
    if served is not None:
        return ServedAliases(served.url)
    if has_tables(address):
        return StoredAliases(address)
    from infra import tracking  # noqa: PLC0415  MLflow takes seconds

    client: AliasClient = tracking.prepare_tracking()
    return client


@dataclass(frozen=True, slots=True)
class _Named:
    version: str


@dataclass(frozen=True)
class ServedAliases:
    """Aliases of an MLflow server at an address, with the settings' login."""

    address: str

    def get_model_version_by_alias(self, name: str, alias: str) -> _Named:
        found = self._call("GET", "registered-models/alias", {"name": name, "alias": alias})
        return _Named(found["model_version"]["version"])

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._call("POST", "registered-models/alias", {"name": name, "alias": alias, "version": version})

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self._call("DELETE", "registered-models/alias", {"name": name, "alias": alias})

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        fields = {"name": name, "version": version, "key": key, "value": value}
        self._call("POST", "model-versions/set-tag", fields)

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        self._call("DELETE", "model-versions/delete-tag", {"name": name, "version": version, "key": key})

    def _call(self, method: str, path: str, fields: dict[str, str]) -> Any:
        url, body = f"{self.address}/api/2.0/mlflow/{path}", None
        if method == "GET":
            url += f"?{urlencode(fields)}"
        else:
            body = json.dumps(fields).encode()
        try:
            request = urllib.request.Request(url, body, self._headers, method=method)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise self._refused(error) from error
        except OSError as error:
            raise UnreachableError("MLflow", self.address, f"{error}; check DECIDUOUS_MLFLOW_TRACKING_URI") from error

    def _refused(self, error: HTTPError) -> InfraError:
        """A server that is busy or broken may answer later; a refusal stays one."""
        if error.code == 429 or error.code >= 500:
            return UnreachableError("MLflow", self.address, f"{error}; see its log")
        try:
            said = json.load(error)
        except ValueError:
            said = {}  # a login that is missing is refused in plain text
        return RefusedError(
            f"MLflow at {self.address}", said.get("error_code", str(error.code)), said.get("message", error.reason)
        )

    @cached_property
    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        user, password = settings().mlflow_username, settings().mlflow_password
        if user is not None and password is not None:
            login = b64encode(f"{user}:{password.get_secret_value()}".encode()).decode()
            headers["Authorization"] = f"Basic {login}"
        return headers
