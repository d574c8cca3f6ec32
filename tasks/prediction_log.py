"""Which version answered, with what, under which grants: one JSON line per request, never an input or an answer."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.settings import settings
from tasks.learning.composition import Prediction
from tasks.narration import say

BLOCK = 64 * 1024


def note_prediction(stream: str, version: int, grants: str, found: Prediction) -> None:
    """Append to `predictions/STREAM.jsonl` in the home; lines of several processes do not mix.

    Its groups are those that could take part, not what the caller asked for: none and '*' name no group, and a caller
    may write anything.
    """
    visits = Counter(adapter_id for visited in found.visits for adapter_id in visited)
    line = {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "version": version,
        "entitlements": grants,
        "groups": list(found.groups),
        "rows": len(found.labels),
        "adapters": dict(sorted(visits.items())),
    }
    path = _path(stream)
    path.parent.mkdir(parents=True, exist_ok=True)
    # one write to a file that only grows: whole lines, whoever else writes
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        rest = f"{json.dumps(line)}\n".encode()
        while rest:  # a disk that is almost full takes a part, and says why with the next
            rest = rest[os.write(handle, rest) :]
    finally:
        os.close(handle)


def predictions_since(stream: str, since: datetime) -> Iterator[dict[str, Any]]:
    """The lines noted since then, the newest first; what was torn by a crash or a full disk is left out and counted."""
    path, torn = _path(stream), 0
    for line in _lines_backwards(path) if path.exists() else ():
        try:
            noted = json.loads(line)
        except ValueError:
            torn += 1
            continue
        if datetime.fromisoformat(noted["at"]) < since:
            break
        yield noted
    if torn:
        say(f"  {torn} lines of {path} cannot be read and are left out")


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """The log grows with every request: what is old is not read."""
    with path.open("rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            rest, *lines = (file.read(end - start) + rest).split(b"\n")
            yield from filter(None, reversed(lines))
            end = start
        if rest:
            yield rest


def _path(stream: str) -> Path:
    return settings().home / "predictions" / f"{stream}.jsonl"
