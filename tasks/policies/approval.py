"""Whether a gate asks a person."""

from enum import StrEnum


def asks_person(mode: StrEnum, regressed: bool) -> bool:
    """`mode` is 'never', 'always' or 'on-regression': ask only where something would get worse."""
    return mode == "always" or (mode == "on-regression" and regressed)
