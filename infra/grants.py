"""The file of grants: stream -> caller -> groups. It is taken whole or not at all."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from infra.errors import GrantsError

Grants = Mapping[str, Mapping[str, list[str] | None] | None]
_GRANTS: TypeAdapter[Grants] = TypeAdapter(Grants)


@dataclass(frozen=True, slots=True)
class GrantsFile:
    """What is granted, and the digest of the bytes that say so."""

    grants: Grants
    snapshot: str


def read_grants(file: Path) -> GrantsFile:
    """Raises GrantsError where the file cannot be read, or an entry is not of the form `caller: [group]`: a text in
    place of a list would grant each of its letters."""
    try:
        data = file.read_bytes()
        written = yaml.safe_load(data) or {}
        grants = _GRANTS.validate_python(written, strict=True)
    except ValidationError as error:
        raise GrantsError(str(file), _oddity(written, error)) from None
    except (OSError, yaml.YAMLError, ValueError) as error:  # the last one is a date that no calendar has
        raise GrantsError(str(file), f"cannot be read: {_cause(error)}") from None
    return GrantsFile(grants, hashlib.sha256(data).hexdigest()[:16])


def _oddity(written: Any, error: ValidationError) -> str:
    """Where the file is not what it should be. A caller is told by its place among those of the stream, not by name: it
    may be a secret written in the clear."""
    stream, caller, *_ = (*error.errors()[0]["loc"], None, None)
    where = "streams" if stream is None else f"those of stream {stream!r}"
    callers = written.get(stream) if isinstance(written, dict) else None
    if isinstance(callers, dict) and caller in callers:
        where += f" (entry {[*callers].index(caller) + 1} of {len(callers)})"
    return f"{where} are not of the form `caller: [group]`; brackets around groups, quotes around numbers, yes and no"


def _cause(error: Exception) -> str:
    """Without the lines of the file, which YAML's own message quotes."""
    mark = getattr(error, "problem_mark", None)
    told = getattr(error, "strerror", None) or type(error).__name__
    return f"{told} in line {mark.line + 1}" if mark else str(told)
