"""Rows of a Parquet, JSONL or CSV object, one after the other: what cannot be read in one row stays in that row.

Nothing is guessed: a CSV's cells are text (007 stays 007), as JSON's strings are. Memory is bounded by the object
and one chunk of rows, whatever the object claims to hold.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from registry.errors import SourceError

if TYPE_CHECKING:
    from _csv import Reader

CHUNK = 1024  # rows of Parquet decoded at a time
MAX_ROWS = 20_000_000
ESCAPING = {"jsonl": b"\\", "csv": b'"'}
"""Without it, a text lies in the object as it is."""
BOM = b"\xef\xbb\xbf"  # before a quoted name it would make the quotes a part of it
NO_OBJECT = "row is not a JSON object"
TWICE = "a column stands twice in the row"
csv.field_size_limit((1 << 31) - 1)  # an over-long cell is its row's fault, not the object's


@dataclass(frozen=True, slots=True)
class RawRow:
    cells: Mapping[str, Any]
    """Of the columns that were asked for; None where a value is absent or cannot be read."""
    fault: str | None = None
    """Why the row cannot be taken in, whatever its other cells say."""


def raw_rows(data: bytes, uri: str, columns: Sequence[str] | None, limit: int) -> Iterator[RawRow]:
    """Every row in order; without `columns` with all that it has. Raises SourceError naming the object for bytes that
    are not what the name says, or that would unpack to more than `limit` bytes."""
    if is_columnar(uri):
        return _parquet_rows(data, uri, columns, limit)
    return _jsonl_rows(data, uri, columns or ()) if _format(uri) == "jsonl" else _csv_rows(data, uri)


def is_columnar(uri: str) -> bool:
    """Whether its rows hold the columns that were asked for alone; those of other formats hold all."""
    return _format(uri) == "parquet"


def unpacked(data: bytes, uri: str, limit: int) -> Iterator[bytes]:
    """The texts of an object, some rows at a time: nothing in them is compressed or escaped. None where nothing is so
    in the object either, whose bytes say as much: to read them as rows takes far longer. Raises SourceError."""
    if (mark := ESCAPING.get(_format(uri))) is not None and mark not in data:
        return
    rows = raw_rows(data, uri, None, limit)
    while some := list(islice(rows, CHUNK)):
        texts = (value for row in some for value in leaves(row.cells) if isinstance(value, str | bytes))
        yield b"\0".join(t if isinstance(t, bytes) else t.encode("utf-8", "surrogatepass") for t in texts)


def leaves(value: object) -> Iterator[object]:
    """Every value in a value that holds no others, however deep."""
    if isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(each)
    else:
        yield value


def missing_columns(data: bytes, uri: str, wanted: Sequence[str], limit: int) -> tuple[list[str], list[str]]:
    """(wanted columns that the object lacks, the columns that it has and may be told). A column that stands twice is
    refused. A CSV's first line is not told: where the header is absent it is somebody's row."""
    if _format(uri) == "jsonl":
        return _missing_keys(data, uri, wanted)
    if _format(uri) == "parquet":
        names = list(_open_parquet(data, uri, limit).schema_arrow.names)
        told = names
    else:
        names, told = _header(_csv_lines(data, uri), uri), []
    for name in wanted:
        if names.count(name) > 1:
            raise SourceError(f"object {uri} has the column {name!r} {names.count(name)} times; deliver it with one")
    return [name for name in wanted if name not in names], _telling(told)


def what_it_has(data: bytes, uri: str, told: Sequence[str]) -> str:
    """For the error about missing columns: those that there are, or what the object is instead."""
    if told:
        return f"it has {', '.join(told)}"
    if not data.strip():
        return "it is empty"
    if _format(uri) == "jsonl":
        return "no line of it is a JSON object with columns for keys"
    return "its first line, read as UTF-8 and cut at its commas, names others"


def _format(uri: str) -> str:
    """What any other name ends in is read as CSV."""
    return uri.rpartition(".")[2].lower()


def without_rows(data: bytes, uri: str, gone: Sequence[bool]) -> bytes:
    """The object without the rows marked True, in its own format; what stays of text keeps its bytes."""
    if _format(uri) == "parquet":
        sink = BytesIO()
        stays = pa.array([not goes for goes in gone], pa.bool_())
        pq.write_table(_without_unused(pq.ParquetFile(BytesIO(data)).read().filter(stays)), sink)
        return sink.getvalue()
    if _format(uri) == "jsonl":
        marked = zip(_lines(data.removeprefix(BOM)), gone, strict=True)
        return b"".join(line for line, goes in marked if not goes)
    lines = _as_text(data).readlines()
    rows = _csv_lines(data, uri)
    _header(rows, uri)
    kept, start = lines[: rows.line_num], rows.line_num
    marks = iter(gone)
    for row in rows:
        if not row or not next(marks):  # a blank line is no row
            kept += lines[start : rows.line_num]
        start = rows.line_num
    return "".join(kept).encode("utf-8", "surrogateescape")


def _without_unused(table: pa.Table) -> pa.Table:
    """A column of categories holds all that it ever had, also those of no row that is left: it becomes a plain one."""
    plain = pa.schema([field.with_type(_plain(field.type)) for field in table.schema], table.schema.metadata)
    return table if plain.equals(table.schema) else table.cast(plain)


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        of_items = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return of_items(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _plain(kind.item_type))
    return kind


def _unreadable(uri: str, error: Exception) -> SourceError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return SourceError(f"object {uri} cannot be read ({first}); deliver it again, whole")


def _lines(data: bytes) -> list[bytes]:
    return [line for line in data.splitlines(keepends=True) if line.strip()]


def _jsonl_rows(data: bytes, uri: str, columns: Sequence[str] = ()) -> Iterator[RawRow]:
    """A last line without an end that is no JSON is a delivery that was cut: the object is refused as a whole."""
    lines = _lines(data.removeprefix(BOM))
    for number, line in enumerate(lines):
        row = _json_row(line, columns)
        if row.fault not in (None, NO_OBJECT, TWICE) and number == len(lines) - 1 and not line.endswith((b"\n", b"\r")):
            raise _unreadable(uri, ValueError("its last line is cut"))
        yield row


class _Doubled(dict[str, Any]):
    """An object in which keys stand twice; it has their last values."""

    doubled: frozenset[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) == len(pairs):
        return cells
    found = _Doubled(cells)
    found.doubled = frozenset(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return found


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


def _json_row(line: bytes, columns: Sequence[str]) -> RawRow:
    """A column that stands twice is nobody's guess; what nested objects and other columns hold is not looked at."""
    try:
        cells = _decode(line.decode())
    except UnicodeDecodeError:
        return RawRow({}, "row is not UTF-8")
    except (ValueError, RecursionError):  # also a number of too many digits
        return RawRow({}, "row is not JSON")
    if isinstance(cells, _Doubled) and not cells.doubled.isdisjoint(columns):
        return RawRow(cells, TWICE)
    return RawRow(cells) if isinstance(cells, dict) else RawRow({}, NO_OBJECT)


def _missing_keys(data: bytes, uri: str, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    missing, told = set(wanted), list[str]()
    for row in _jsonl_rows(data, uri):
        told = told or list(row.cells)
        missing -= row.cells.keys()
        if not missing:
            break
    return [name for name in wanted if name in missing], _telling(told)


def _telling(names: Sequence[str]) -> list[str]:
    """At most 30 names, cut where they are long, in characters that any log holds."""
    return [ascii(name[:60])[1:-1] for name in names[:30]]


def _as_text(data: bytes) -> TextIOWrapper:
    return TextIOWrapper(BytesIO(data), encoding="utf-8", errors="surrogateescape", newline="")


def _csv_lines(data: bytes, uri: str) -> "Reader":  # noqa: ARG001  one signature
    return csv.reader(_as_text(data.removeprefix(BOM)), strict=True)


def _header(rows: "Reader", uri: str) -> list[str]:
    try:
        return next(rows, [])
    except csv.Error as error:
        raise _unreadable(uri, error) from None


def _csv_rows(data: bytes, uri: str) -> Iterator[RawRow]:
    """Quotes that do not close leave open where every later row ends: the object is refused as a whole."""
    rows = _csv_lines(data, uri)
    names = _header(rows, uri)
    try:
        for row in rows:
            if len(row) == len(names):
                yield RawRow(dict(zip(names, row, strict=True)))
            elif row:
                yield RawRow({}, "row has another number of cells than the header")
    except csv.Error as error:
        raise _unreadable(uri, ValueError(f"line {rows.line_num}: {error}")) from None


def _open_parquet(data: bytes, uri: str, limit: int) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(BytesIO(data))
        text = [f.name for f in file.schema_arrow if pa.types.is_string(f.type) or pa.types.is_binary(f.type)]
        unpacked = sum(file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups))
        rows = file.metadata.num_rows
    except Exception as error:  # whatever a decoder of foreign bytes raises
        raise _unreadable(uri, error) from None
    if rows > MAX_ROWS or unpacked > limit:
        raise SourceError(
            f"object {uri} claims {rows} rows and {unpacked} bytes unpacked; at most {MAX_ROWS} rows and {limit} bytes "
            "(DECIDUOUS_OBJECT_BYTES) are taken in at once: deliver it in parts"
        )
    # a value that stands once in the file stands once in memory, however many rows point at it
    return pq.ParquetFile(BytesIO(data), read_dictionary=text)


def _parquet_rows(data: bytes, uri: str, columns: Sequence[str] | None, limit: int) -> Iterator[RawRow]:
    file = _open_parquet(data, uri, limit)
    wanted = None if columns is None else list(dict.fromkeys(columns))
    try:
        for chunk in file.iter_batches(CHUNK, columns=wanted, use_threads=False):
            yield from _chunk_rows(chunk)
    except GeneratorExit:
        raise
    except Exception as error:  # whatever a decoder of foreign bytes raises
        raise _unreadable(uri, error) from None


def _chunk_rows(chunk: pa.RecordBatch) -> Iterator[RawRow]:
    values = {name: _values(column) for name, column in zip(chunk.schema.names, chunk.columns, strict=True)}
    for number in range(chunk.num_rows):
        cells = {name: column[number] for name, column in values.items()}
        broken = [name for name, cell in cells.items() if cell is _BROKEN]
        yield RawRow({**cells, **dict.fromkeys(broken)}, "a value cannot be read" if broken else None)


_BROKEN = object()


def _values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, pa.ArrowException):
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    """A text that is not UTF-8, a date outside of the calendar."""
    try:
        return cell.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        return _BROKEN
