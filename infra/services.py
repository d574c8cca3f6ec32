"""The servers that `deciduous up` started for a home: name, process, address."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.children import Child
from infra.files import write_private


@dataclass(frozen=True)
class Service:
    """A server of the local stack."""

    name: str
    child: Child
    url: str
    health: str
    """Address that answers 200 once the server is up."""


def load_services(home: Path) -> list[Service]:
    path = _file(home)
    if not path.exists():
        return []
    return [Service(**{**fields, "child": Child(**fields["child"])}) for fields in json.loads(path.read_bytes())]


def save_services(home: Path, services: Iterable[Service]) -> None:
    write_private(_file(home), json.dumps([asdict(service) for service in services]).encode())


def forget_services(home: Path) -> None:
    _file(home).unlink(missing_ok=True)


def find_service(home: Path, name: str) -> Service | None:
    """The service of that name if its process lives."""
    return next((each for each in load_services(home) if each.name == name and each.child.is_alive()), None)


def _file(home: Path) -> Path:
    return home / "stack.json"
