"""Turn an object's bytes into accepted rows and quarantined ones. Nothing is guessed: a bad row has a reason."""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from infra.settings import settings
from registry.errors import SourceError
from registry.records import LABEL_SEPARATOR
from registry.sections import TaskType
from registry.stream import Stream
from tasks.formats import RawRow, is_columnar, leaves, missing_columns, raw_rows, what_it_has
from tasks.identity import hasher, is_held_out, order_key, slice_of
from tasks.learning.images import ImageError, open_image
from tasks.rows import Row

MAX_INPUT_BYTES, MAX_IMAGE_BYTES = 1_000_000, 50_000_000
MAX_NAME_BYTES = 200
"""Of a label or a group: groups are part of keys in S3, labels of tags in MLflow."""
CHUNK = 4096
DEFAULT_GROUP = "default"
UNLABELLED = "; a batch without labels has the column {!r} too, with no value in any row, and is held"

Hashes = Callable[[str, str], list[str]]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A refused row: where it stands in the object and why. Its content stays in the source alone."""

    row: int
    reason: str
    record: str | None
    subject: str | None


@dataclass(frozen=True, slots=True)
class Reading:
    rows: list[Row]
    """In canonical order."""
    quarantined: list[Quarantined]
    suppressed: int

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(q.reason for q in self.quarantined))


def rows_of(data: bytes, uri: str, columns: Sequence[str] | None) -> Iterator[RawRow]:
    """Every row of an object, with these cells or all. Raises SourceError for bytes that are not what its name says."""
    return raw_rows(data, uri, columns, settings().object_bytes)


def check_columns(data: bytes, uri: str, stream: Stream, *fields: str) -> list[str]:
    """The columns that the stream names for these fields, or for all. Raises SourceError where the object lacks one."""
    named = stream.columns.model_dump().items()
    wanted = {name: column for name, column in named if column is not None and (not fields or name in fields)}
    missing, told = missing_columns(data, uri, list(wanted.values()), settings().object_bytes)
    if missing:
        lacking = ", ".join(f"{name}: {column}" for name, column in wanted.items() if column in missing)
        label = stream.columns.label
        raise SourceError(
            f"object {uri} has no column for {lacking}; {what_it_has(data, uri, told)}: correct the object, or "
            f"`columns` in the stream file of {stream.name!r}"
            + (UNLABELLED.format(label) if missing == [label] else "")
        )
    return list(wanted.values())


def read_rows(
    data: bytes, uri: str, stream: Stream, seen: Callable[[list[str]], set[str]], suppressed: dict[str, set[str]]
) -> Reading:
    """Validate every row of an object.

    `seen` answers which keyed record hashes earlier batches hold; `suppressed` is the stream's suppression list.
    Suppressed subjects and records are dropped before anything else looks at them.
    """
    columns = check_columns(data, uri, stream)
    label = stream.columns.label
    labelled = label is not None and any(as_text(r.cells.get(label)) for r in rows_of(data, uri, [label]))
    rows: dict[str, tuple[str, Row]] = {}
    bad: list[Quarantined] = []
    unpacked = dropped = 0
    hashes, every = hasher(stream.name), enumerate(rows_of(data, uri, columns))
    while chunk := list(islice(every, CHUNK)):
        raw = [(n, _raw_row(row, stream, hashes)) for n, row in chunk]
        kept = [(n, fields) for n, fields in raw if not _is_suppressed(fields, suppressed)]
        dropped += len(raw) - len(kept)
        earlier = seen([keyed for _, fields in kept for keyed in fields["record_hashes"]])
        for n, fields in kept:
            reason = _fault(fields, stream, labelled, earlier, rows)
            if reason is None:
                accepted = _accept(fields, stream)
                rows[fields["record"]] = (order_key(stream.name, fields["id"]), accepted)
                unpacked += len(accepted.input)
            else:
                bad.append(Quarantined(n, reason, fields["record"], fields["keyed_subject"]))
        if unpacked > settings().object_bytes:
            raise SourceError(
                f"object {uri} unpacks to more than {settings().object_bytes} bytes of input "
                "(DECIDUOUS_OBJECT_BYTES); deliver it in parts"
            )
    ordered = [row for _, row in sorted(rows.values(), key=lambda pair: pair[0])]
    return Reading(ordered, bad, dropped)


def _raw_row(row: RawRow, stream: Stream, hashes: Hashes) -> dict[str, Any]:
    columns, cells = stream.columns, row.cells
    named = {"id": columns.id, "subject": columns.subject or columns.id, "group": columns.group}
    named |= {"label": columns.label, "time": columns.time}
    values = {field: cells.get(column) for field, column in named.items() if column is not None}
    odd = {field: why for field, value in values.items() if (why := _oddity(value)) is not None}
    text = {field: None if field in odd else as_text(values.get(field)) for field in named}
    if stream.task == TaskType.LANGUAGE:
        text["label"] = ""  # a document is learned as it is: its label is blank, not missing
    records = [] if text["id"] is None else hashes("record", text["id"])
    subjects = [] if text["subject"] is None else hashes("subject", text["subject"])
    return {
        **text,
        "record_hashes": records,
        "subject_hashes": subjects,
        "record": records[0] if records else None,
        "keyed_subject": subjects[0] if subjects else None,
        "group": text["group"] if columns.group else DEFAULT_GROUP,
        "input": cells.get(columns.input),
        "fault": row.fault or next((f"{field} is {why}" for field, why in odd.items()), None),
    }


def named_rows(data: bytes, uri: str, stream: Stream, suppressed: Mapping[str, set[str]]) -> list[bool | None]:
    """Per row of an object, whether the list names it; None where the row cannot be read, so that nobody can say."""
    columns = [stream.columns.id, stream.columns.subject or stream.columns.id]
    hashes, rows = hasher(stream.name), rows_of(data, uri, columns)
    if is_columnar(uri) and any(_lacks_one(row, columns) for row in rows_of(data, uri, columns)):
        pairs = zip(rows, rows_of(data, uri, None), strict=True)
        rows = (replace(row, cells={**whole.cells, **row.cells}) for row, whole in pairs)
    return [_names(row, stream, hashes, suppressed) for row in rows]


def _names(row: RawRow, stream: Stream, hashes: Hashes, suppressed: Mapping[str, set[str]]) -> bool | None:
    """A row without its id, or subject, is named by whatever value of it is one: it may stand under another column."""
    fields = _raw_row(row, stream, hashes)
    if _is_suppressed(fields, suppressed):
        return True
    if row.fault is not None:
        return None
    lacking = [kind for kind, text in (("record", fields["id"]), ("subject", fields["subject"])) if text is None]
    found = {text for value in leaves(row.cells) if (text := _as_name(value))} if lacking else ()
    return any(not suppressed[kind].isdisjoint(hashes(kind, text)) for kind in lacking for text in found)


def _lacks_one(row: RawRow, columns: Sequence[str]) -> bool:
    return any(as_text(row.cells.get(column)) is None for column in columns)


def _as_name(value: object) -> str | None:
    """What a value would be in the column of ids, were its bytes text."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return as_text(text) if _oddity(text) is None else None


def as_text(value: object) -> str | None:
    """A value as text in Unicode's form C; blank means missing. A whole float is the whole number: what a writer makes
    of a column of numbers with gaps is the same id."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() and abs(value) < 1 << 53 else value
    text = "" if value is None else unicodedata.normalize("NFC", str(value)).strip()
    return text or None


def _oddity(value: object) -> str | None:
    """What a value is that cannot be a name; None for a plain one."""
    if isinstance(value, bytes | list | tuple | dict | set):
        return f"{type(value).__name__}, not a plain value"
    return "no valid Unicode" if isinstance(value, str) and not _is_unicode(value) else None


def _is_unicode(text: str) -> bool:
    """False for halves of surrogate pairs, which JSON can spell and no encoding holds."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_suppressed(fields: Mapping[str, Any], suppressed: Mapping[str, set[str]]) -> bool:
    """Whether a ticket names the record or its subject, by a hash under today's key or a retired one."""
    named = (("record", fields["record_hashes"]), ("subject", fields["subject_hashes"]))
    return any(not suppressed[kind].isdisjoint(keyed) for kind, keyed in named)


def _fault(
    fields: dict[str, Any], stream: Stream, labelled: bool, earlier: set[str], rows: dict[str, Any]
) -> str | None:
    """Why a row is refused, or None."""
    if fields["fault"] is not None:
        return str(fields["fault"])
    missing = next((name for name in ("id", "subject", "group") if fields[name] is None), None)
    if missing is not None:
        return f"missing {missing}"
    if fields["record"] in rows:
        return "duplicate id in this batch"
    if not earlier.isdisjoint(fields["record_hashes"]):
        return "id already taken in with an earlier batch"
    if labelled and fields["label"] is None:
        return "missing label"
    unfit = _name_fault("group", fields["group"]) or _name_fault("label", fields["label"])
    return unfit or input_fault(stream.task, fields["input"])


def _name_fault(field: str, name: str | None) -> str | None:
    """Groups are parts of keys, labels stand in tags: what a path or a database would take apart is refused."""
    if name is None:
        return None
    if any(unicodedata.category(c) == "Cc" for c in name) or LABEL_SEPARATOR in name:
        return f"{field} holds a control character"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"{field} is over-long"
    return f"{field} is no name" if field == "group" and name in (".", "..") else None


def input_fault(task: TaskType, value: object) -> str | None:
    """Why a value cannot be learned from or answered, or None. A path is a text: no row opens a file."""
    return _image_fault(value) if task == TaskType.IMAGE else _text_fault(value)


def _text_fault(text: object) -> str | None:
    if not isinstance(text, str):
        return "input is missing" if text is None else f"input is {type(text).__name__}, not text"
    if not text.strip():
        return "input is empty"
    if not _is_unicode(text):
        return "input is no valid Unicode"
    return "input is over-long" if len(text.encode()) > MAX_INPUT_BYTES else None


def _image_fault(data: object) -> str | None:
    if data is None or (isinstance(data, bytes | str) and not data):
        return "input is missing"
    if not isinstance(data, bytes):
        return f"input is {type(data).__name__}, not image bytes"
    if len(data) > MAX_IMAGE_BYTES:
        return "input is over-long"
    try:
        open_image(data, is_new=True)
    except ImageError as error:
        return str(error)
    return None


def _accept(fields: dict[str, Any], stream: Stream) -> Row:
    content = fields["input"]
    return Row(
        record=fields["record"],
        subject=fields["keyed_subject"],
        group=fields["group"],
        label=fields["label"],
        input=content if isinstance(content, bytes) else content.encode(),
        time=fields["time"],
        held_out=is_held_out(stream.name, fields["id"]),
        slice=slice_of(stream.name, fields["subject"], stream.adapter.slices),
    )
