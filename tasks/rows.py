"""The accepted rows of a shard, as they are stored: keyed hashes, input, label, split and slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("record", pa.string()),
        ("subject", pa.string()),
        ("group", pa.string()),
        ("label", pa.string()),
        ("input", pa.binary()),
        ("time", pa.string()),
        ("held_out", pa.bool_()),
        ("slice", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Row:
    record: str
    """Keyed hash of the record's id."""
    subject: str
    """Keyed hash of the record's subject."""
    group: str
    label: str | None
    input: bytes
    """UTF-8 text, or an image file's bytes."""
    time: str | None
    held_out: bool
    slice: int


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Deterministic bytes: the same rows give the same digest. Uncompressed, so that a sweep for bytes can see them."""
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    sink = BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="none", use_dictionary=False)
    return sink.getvalue()


def from_parquet(data: bytes) -> list[Row]:
    return [Row(**fields) for fields in pq.read_table(BytesIO(data), schema=SCHEMA).to_pylist()]


def trainable(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row.held_out and row.label is not None]


def held_out(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.held_out and row.label is not None]


def count_rows(rows: Sequence[Row]) -> tuple[int, int, int]:
    """(rows, held-out rows with a label, trainable rows)."""
    return len(rows), len(held_out(rows)), len(trainable(rows))
