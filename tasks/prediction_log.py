"""Which version answered, with what, under which grants: one JSON line per request, never an input or an answer."""

import json
import os
from collections import Counter
from datetime import UTC, datetime

from infra.settings import settings
from tasks.learning.composition import Prediction


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
    path = settings().home / "predictions" / f"{stream}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    # one write to a file that only grows: whole lines, whoever else writes
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, f"{json.dumps(line)}\n".encode())
    finally:
        os.close(handle)
