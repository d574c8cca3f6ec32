"""The servers that `deciduous up` started for a home: name, process, address."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.children import Child
from infra.files import is_of_another, write_private


@dataclass(frozen=True)
class Service:
    """A server of the local stack."""

    name: str
    child: Child
    url: str
    health: str
    """Address that answers 200 once the server is up."""


def load_services(home: Path) -> list[Service]:
    """None where the home is a copy of one whose servers these are."""
    path = _file(home)
    noted = json.loads(path.read_bytes()) if path.exists() else []
    ours = [fields for fields in noted if not is_of_another(fields.pop("home", None), home)]
    return [Service(**{**fields, "child": Child(**fields["child"])}) for fields in ours]


def save_services(home: Path, services: Iterable[Service]) -> None:
    noted = [{**asdict(service), "home": str(home)} for service in services]
    write_private(_file(home), json.dumps(noted).encode())


def forget_services(home: Path) -> None:
    _file(home).unlink(missing_ok=True)


def find_service(home: Path, name: str) -> Service | None:
    """The service of that name if its process lives."""
    return next((each for each in load_services(home) if each.name == name and each.child.is_alive()), None)


def _file(home: Path) -> Path:
    return home / "stack.json"
