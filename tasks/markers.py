"""Bytes by which deleted records can be recognised, held privately until a ticket is complete.

They are the most concentrated copy of what a ticket deletes, so they lie in one file that only its owner may read. It
goes when the sweep has found nothing; a ticket that is an exception keeps it, for the sweep that is still to come.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from infra.files import write_private
from infra.settings import settings
from registry.records import Shard
from registry.stream import Stream
from tasks.identity import catalog_key
from tasks.prefix_cache import states_of
from tasks.rows import Row
from tasks.shards import load_rows

WINDOW, SHORTEST = 48, 24
"""Bytes of an input that are looked for; shorter inputs say too little to tell one record from another."""


def keep_markers(stream: Stream, ticket_id: str, touched: Sequence[Shard], keys: Iterable[int]) -> None:
    """Collect markers of the records before they go: keyed hash, a window of the input, a row of the hidden state."""
    wanted = set(keys)
    rows = [row for shard in touched for row in load_rows(shard) if catalog_key(row.record) in wanted]
    found = [marker.hex() for row in rows for marker in _markers(stream, row)]
    if found or not escrow(ticket_id).exists():
        write_private(escrow(ticket_id), json.dumps(found).encode())


def load_markers(ticket_id: str) -> list[bytes]:
    path = escrow(ticket_id)
    return [bytes.fromhex(marker) for marker in json.loads(path.read_text())] if path.exists() else []


def attributable(markers: Sequence[bytes], retained: Iterable[Row]) -> list[bytes]:
    """Markers that no retained record holds too: the same text may belong to somebody who stays."""
    left = list(markers)
    for row in retained:
        left = [marker for marker in left if marker not in row.input]
    return left


def texts_of(markers: Iterable[bytes]) -> list[str]:
    """Those markers that are text: what a database's columns can hold."""
    decoded = (marker.decode("utf-8", "ignore") for marker in markers if b"\0" not in marker)
    return [text for text in decoded if len(text) >= SHORTEST]


def escrow(ticket_id: str) -> Path:
    return settings().home / "escrow" / f"{ticket_id}.json"


def _markers(stream: Stream, row: Row) -> list[bytes]:
    middle = max(0, len(row.input) // 2 - WINDOW // 2)
    window = row.input[middle : middle + WINDOW]
    state_TD = states_of(stream, [row])[0]
    always = [row.record.encode(), state_TD[-1, :8].numpy().tobytes()]
    return [*always, window] if len(window) >= SHORTEST else always
