"""MLflow and Prefect: do they answer, do their versions and tables fit, does a worker live for each pool."""

import json
import os
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from infra.doctor.findings import Finding, bad, good, poor
from infra.errors import UnreachableError
from infra.orchestration import api_address
from infra.settings import settings

POOLS = ("cpu", "gpu")


def examine_mlflow() -> Iterator[Finding]:
    uri = settings().mlflow_tracking_uri
    if not uri.startswith(("http:", "https:")):
        url = make_url(uri)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            yield good("mlflow", "its database will be made on first use")
            return
    else:
        yield _compared("mlflow", uri, _get(f"{uri}/version").decode())
        if settings().mlflow_database_url is None:
            yield bad("mlflow", "a deletion cannot reach the server's rows", "set DECIDUOUS_MLFLOW_DATABASE_URL")
    from infra import tracking  # noqa: PLC0415  importing MLflow takes seconds

    client = tracking.prepare_tracking()
    client.search_experiments(max_results=1)
    yield good("mlflow", f"lets {os.environ.get('MLFLOW_TRACKING_USERNAME', 'anybody')} in")
    if settings().mlflow_database_url is not None:
        with tracking.backend() as connection:
            connection.exec_driver_sql("select 1")
        yield good("mlflow", "its database answers too")


def examine_prefect() -> Iterator[Finding]:
    api = api_address()
    if api is None:
        yield good("prefect", "no server: each command runs an API of its own; schedules and events need one")
        return
    yield _compared("prefect", api, json.loads(_prefect(api, "/admin/version")))
    pools = {pool["name"] for pool in json.loads(_prefect(api, "/work_pools/filter", {}))}
    for pool in POOLS:
        yield _workers(api, pool) if pool in pools else poor("prefect", f"no work pool {pool}", "deciduous deploy")


def _workers(api: str, pool: str) -> Finding:
    known = json.loads(_prefect(api, f"/work_pools/{pool}/workers/filter", {}))
    online = [worker["name"] for worker in known if worker["status"] == "ONLINE"]
    if online:
        return good("prefect", f"pool {pool} is served by {', '.join(online)}")
    remedy = f"prefect worker start --pool {pool} --type process"
    return poor("prefect", f"pool {pool} has no worker: what is scheduled there waits", remedy)


def _compared(part: str, address: str, theirs: str) -> Finding:
    ours = version(part)
    if theirs.split(".")[:2] == ours.split(".")[:2]:
        return good(part, f"{address} runs {theirs}")
    return poor(
        part, f"{address} runs {theirs}, this code was tested with {ours}", "run the same version on both sides"
    )


def _prefect(api: str, path: str, body: dict[str, Any] | None = None) -> bytes:
    return _get(f"{api.rstrip('/')}{path}", body, os.environ.get("PREFECT_API_AUTH_STRING"))


def _get(url: str, body: dict[str, Any] | None = None, login: str | None = None) -> bytes:
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            content: bytes = answer.read()
    except OSError as error:
        raise UnreachableError("a server", url, f"{error}; see that it runs, and its address and login") from error
    return content
