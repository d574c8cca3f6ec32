"""Turn an object's bytes into accepted rows and quarantined ones. Nothing is guessed: a bad row has a reason."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from PIL import Image

from registry.errors import SourceError
from registry.records import LABEL_SEPARATOR
from registry.stream import Stream, TaskType
from tasks.identity import is_held_out, keyed_hash, keyed_hashes, order_key, slice_of
from tasks.rows import Row

MAX_INPUT_BYTES = 1_000_000
MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS = 50_000_000, 50_000_000
DEFAULT_GROUP = "default"


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


def read_table(data: bytes, uri: str) -> pa.Table:
    """Raises SourceError naming the object for bytes that are not what the name says."""
    try:
        if uri.endswith(".parquet"):
            return pq.read_table(BytesIO(data))
        if uri.endswith(".jsonl"):
            return pyarrow.json.read_json(BytesIO(data))
        return pyarrow.csv.read_csv(BytesIO(data))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"object {uri} cannot be read ({first_line}); deliver it again, whole") from None


def check_columns(table: pa.Table, stream: Stream, uri: str) -> None:
    wanted = {name: column for name, column in stream.columns.model_dump().items() if column is not None}
    missing = {name: column for name, column in wanted.items() if column not in table.column_names}
    if missing:
        named = ", ".join(f"{name}: {column}" for name, column in missing.items())
        raise SourceError(
            f"object {uri} has no column for {named}; it has {', '.join(table.column_names)}: correct `columns` in the "
            f"stream file of {stream.name!r}"
        )


def read_rows(
    data: bytes, uri: str, stream: Stream, seen: Callable[[list[str]], set[str]], suppressed: dict[str, set[str]]
) -> Reading:
    """Validate every row of an object.

    `seen` answers which keyed record hashes earlier batches hold; `suppressed` is the stream's suppression list.
    Suppressed subjects and records are dropped before anything else looks at them.
    """
    table = read_table(data, uri)
    check_columns(table, stream, uri)
    raw = [_raw_row(fields, stream) for fields in table.to_pylist()]
    labelled = any(fields["label"] is not None for fields in raw)
    kept = [(n, f) for n, f in enumerate(raw) if not is_suppressed(stream, f["id"], f["subject"], suppressed)]
    earlier = _seen_ids(stream, [f["id"] for _, f in kept if f["id"] is not None], seen)
    rows: dict[str, tuple[str, Row]] = {}
    bad: list[Quarantined] = []
    for n, fields in kept:
        reason = _fault(fields, stream, labelled, earlier, rows)
        if reason is None:
            rows[fields["record"]] = (order_key(stream.name, fields["id"]), _accept(fields, stream))
        else:
            bad.append(Quarantined(n, reason, fields["record"], fields["keyed_subject"]))
    ordered = [row for _, row in sorted(rows.values(), key=lambda pair: pair[0])]
    return Reading(ordered, bad, len(raw) - len(kept))


def _raw_row(fields: dict[str, Any], stream: Stream) -> dict[str, Any]:
    columns = stream.columns
    id_ = as_text(fields.get(columns.id))
    subject = as_text(fields.get(columns.subject)) if columns.subject else id_
    return {
        "id": id_,
        "subject": subject,
        "record": None if id_ is None else keyed_hash("record", stream.name, id_),
        "keyed_subject": None if subject is None else keyed_hash("subject", stream.name, subject),
        "group": as_text(fields.get(columns.group)) if columns.group else DEFAULT_GROUP,
        "label": _label(fields, stream),
        "time": as_text(fields.get(columns.time)) if columns.time else None,
        "input": fields.get(columns.input),
    }


def _label(fields: dict[str, Any], stream: Stream) -> str | None:
    """A document of a language stream is learned as it is: its label is blank, not missing."""
    if stream.task == TaskType.LANGUAGE:
        return ""
    return as_text(fields.get(stream.columns.label)) if stream.columns.label else None


def as_text(value: object) -> str | None:
    """A value as text; blank means missing."""
    text = "" if value is None or value != value else str(value).strip()  # noqa: PLR0124  (NaN differs from itself)
    return text or None


def is_suppressed(stream: Stream, id_: str | None, subject: str | None, suppressed: Mapping[str, set[str]]) -> bool:
    """Whether a ticket names the record or its subject, by a hash under today's key or a retired one."""
    named = (("record", id_), ("subject", subject))
    return any(
        value is not None and not suppressed[kind].isdisjoint(keyed_hashes(kind, stream.name, value))
        for kind, value in named
    )


def _seen_ids(stream: Stream, ids: list[str], seen: Callable[[list[str]], set[str]]) -> set[str]:
    """Those of the ids that earlier batches hold, whatever key they were hashed with."""
    hashes = {id_: keyed_hashes("record", stream.name, id_) for id_ in ids}
    known = seen([keyed for each in hashes.values() for keyed in each])
    return {id_ for id_, each in hashes.items() if not known.isdisjoint(each)}


def _fault(
    fields: dict[str, Any], stream: Stream, labelled: bool, earlier: set[str], rows: dict[str, Any]
) -> str | None:
    """Why a row is refused, or None."""
    missing = next((name for name in ("id", "subject", "group") if fields[name] is None), None)
    if missing is not None:
        return f"missing {missing}"
    if LABEL_SEPARATOR in fields["group"]:
        return "group holds a control character"
    if fields["record"] in rows:
        return "duplicate id in this batch"
    if fields["id"] in earlier:
        return "id already taken in with an earlier batch"
    if labelled and fields["label"] is None:
        return "missing label"
    return _image_fault(fields["input"]) if stream.task == TaskType.IMAGE else _text_fault(fields["input"])


def _text_fault(text: object) -> str | None:
    if not isinstance(text, str):
        return "input is missing" if text is None else f"input is {type(text).__name__}, not text"
    if not text.strip():
        return "input is empty"
    return "input is over-long" if len(text.encode("utf-8", "replace")) > MAX_INPUT_BYTES else None


def _image_fault(data: object) -> str | None:
    if not isinstance(data, bytes) or not data:
        return "input is missing" if not data else f"input is {type(data).__name__}, not image bytes"
    if len(data) > MAX_IMAGE_BYTES:
        return "input is over-long"
    try:
        with Image.open(BytesIO(data)) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                return "image has too many pixels"
            image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "image cannot be decoded"
    return None


def _accept(fields: dict[str, Any], stream: Stream) -> Row:
    content = fields["input"]
    return Row(
        record=fields["record"],
        subject=fields["keyed_subject"],
        group=fields["group"],
        label=fields["label"],
        input=content if isinstance(content, bytes) else content.encode("utf-8", "replace"),
        time=fields["time"],
        held_out=is_held_out(stream.name, fields["id"]),
        slice=slice_of(stream.name, fields["subject"], stream.adapter.slices),
    )
