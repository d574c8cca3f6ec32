"""Bytes by which deleted records can be recognised, held privately until a ticket is complete.

They are the most concentrated copy of what a ticket deletes, so they lie in one file that only its owner may read. It
goes when the sweep has found nothing; a ticket that is an exception keeps it, for the sweep that is still to come.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from infra.files import write_private
from infra.settings import settings
from registry.records import Shard
from registry.sections import TaskType
from registry.stream import Stream
from tasks.identity import catalog_key
from tasks.prefix_cache import states_of
from tasks.rows import Row
from tasks.shards import load_rows

WINDOW, SHORTEST = 48, 24
"""Bytes of an input that are looked for; shorter inputs say too little to tell one record from another."""
FIRST = 12
"""Letters that two texts begin with whose states may be alike."""
AT_ONCE = 256
"""Records whose states are held in memory."""


@dataclass(frozen=True, slots=True)
class Marked:
    """What one record is recognised by; empty where there is nothing of the kind to look for."""

    record: bytes = b""
    """Its keyed hash."""
    state: bytes = b""
    """Of a row of its hidden state."""
    window: bytes = b""
    """Of its input."""
    head: bytes = b""
    """The beginning of its input: only where another input begins alike, a text with the same letters however they are
    written, can the states be alike. Not looked for."""
    subject: bytes = b""
    """The keyed hash of whose it is, for a later ticket that names the subject. Not looked for."""

    @property
    def markers(self) -> list[bytes]:
        return [marker for marker in (self.record, self.state, self.window) if marker]


def keep_markers(stream: Stream, ticket_id: str, touched: Sequence[Shard], keys: Iterable[int]) -> None:
    """Collect markers of the records before they go: keyed hash, a window of the input, a row of the hidden state."""
    wanted = set(keys)
    rows = [row for shard in touched for row in load_rows(shard) if catalog_key(row.record) in wanted]
    found = [{name: value.hex() for name, value in asdict(_mark(stream, row)).items()} for row in rows]
    if found or not escrow(ticket_id).exists():
        write_private(escrow(ticket_id), json.dumps(found).encode())


def load_marked(ticket_id: str) -> list[Marked]:
    path = escrow(ticket_id)
    return [_read(each) for each in json.loads(path.read_text())] if path.exists() else []


def _read(each: str | dict[str, str]) -> Marked:
    if isinstance(each, str):  # of an exception from before records were told apart
        return Marked(window=bytes.fromhex(each))
    return Marked(**{name: bytes.fromhex(value) for name, value in each.items()})


def names_of(marked: Iterable[Marked]) -> set[tuple[str, str]]:
    """What a ticket may name to reach one of these records: (kind, keyed hash) of it, and of its subject."""
    return {pair for m in marked for pair in (("record", m.record.decode()), ("subject", m.subject.decode()))}


def load_markers(ticket_id: str) -> list[bytes]:
    return [marker for each in load_marked(ticket_id) for marker in each.markers]


def attributable(stream: Stream, marked: Sequence[Marked], retained: Sequence[Row]) -> list[Marked]:
    """Without the windows and states that a retained record has too: the same text may belong to somebody who stays."""
    beginning = _beginning if stream.task == TaskType.IMAGE else _letters
    heads = {beginning(each.head) for each in marked}
    alike = [row for row in retained if beginning(row.input) in heads]
    chunks = (alike[start : start + AT_ONCE] for start in range(0, len(alike), AT_ONCE))
    states = {_state_marker(state_TD) for chunk in chunks for state_TD in states_of(stream, chunk)}
    return [
        replace(
            each,
            state=b"" if each.state in states else each.state,
            window=b"" if any(each.window in row.input for row in retained) else each.window,
        )
        for each in marked
    ]


def _beginning(input_: bytes) -> bytes:
    return input_[:WINDOW]


def _letters(text: bytes) -> str:
    """The first letters of a text without what a tokenizer may make nothing of: case, accents, spaces, signs."""
    plain = unicodedata.normalize("NFKD", text[:WINDOW].decode(errors="ignore")).casefold()
    return "".join(filter(str.isalnum, plain))[:FIRST]


def texts_of(markers: Iterable[bytes]) -> list[str]:
    """Those markers that are text: what a database's columns can hold."""
    decoded = (marker.decode("utf-8", "ignore") for marker in markers if b"\0" not in marker)
    return [text for text in decoded if len(text) >= SHORTEST]


def escrow(ticket_id: str) -> Path:
    return settings().home / "escrow" / f"{ticket_id}.json"


def _mark(stream: Stream, row: Row) -> Marked:
    middle = max(0, len(row.input) // 2 - WINDOW // 2)
    window = row.input[middle : middle + WINDOW]
    state = _state_marker(states_of(stream, [row])[0])
    looked_for = row.record.encode(), state, window if len(window) >= SHORTEST else b""
    return Marked(*looked_for, row.input[:WINDOW], row.subject.encode())


def _state_marker(state_TD: Tensor) -> bytes:
    return state_TD[-1, :8].numpy().tobytes()
