"""What an examination found: one line each, and what to do where something is wrong."""

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, and something about it will hurt one day."""
    ERROR = "error"
    """Something would fail."""


@dataclass(frozen=True, slots=True)
class Finding:
    part: str
    health: Health
    found: str
    remedy: str = ""


def good(part: str, found: str) -> Finding:
    return Finding(part, Health.OK, found)


def poor(part: str, found: str, remedy: str = "") -> Finding:
    return Finding(part, Health.WARNING, found, remedy)


def bad(part: str, found: str, remedy: str = "") -> Finding:
    return Finding(part, Health.ERROR, found, remedy)
