"""Whatever arrives: each row is taken in or quarantined with a reason, or the object is refused by name.

`make fuzz` generates more cases than `make test`: FUZZ says how many a property gets."""

import json
import os
from datetime import timedelta
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.settings import settings as deciduous
from registry.errors import SourceError
from registry.records import LABEL_SEPARATOR
from registry.sections import Columns, TaskType
from registry.stream import Stream
from tasks.formats import missing_columns, without_rows
from tasks.reading import named_rows, read_rows, rows_of
from tasks.rows import from_parquet, to_parquet

# a thread of an earlier test (MLflow's, Prefect's) may draw from `random` while a strategy does its work
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")

COLUMNS = Columns(id="id", subject="who", group="team", input="text", label="y", time="at")
STREAM = Stream(name="mail", backbone="b", source="*", columns=COLUMNS)
NAMES = ["id", "who", "team", "text", "y", "at"]
CASES = int(os.environ.get("FUZZ", "500"))
CANARY = "canary-7f3a"  # stands in cells alone: no message may repeat it


def fuzz(cases: int = CASES):
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    phases = (Phase.explicit, Phase.generate, Phase.shrink)
    return settings(
        max_examples=cases,
        deadline=timedelta(seconds=30),
        suppress_health_check=quiet,
        phases=phases,
        derandomize="FUZZ" not in os.environ,  # new cases are for `make fuzz`: a check of a change has to repeat
    )


def check_message(message: str, uri: str) -> None:
    assert uri in message
    assert CANARY not in message
    assert len(message) < 4000


def check(data: bytes, uri: str, stream: Stream = STREAM) -> None:
    """The properties of reading, for any bytes."""
    nobody = {"subject": set(), "record": set()}
    try:
        reading = read_rows(data, uri, stream, lambda _: set(), nobody)
        count = sum(1 for _ in rows_of(data, uri, NAMES))
    except SourceError as error:
        check_message(str(error), uri)
        return
    assert len(reading.rows) + len(reading.quarantined) == count
    assert all(q.reason and CANARY not in q.reason for q in reading.quarantined)
    assert len({row.record for row in reading.rows}) == len(reading.rows)
    for row in reading.rows:
        assert row.input
        assert "\0" not in row.group + (row.label or "")
        assert LABEL_SEPARATOR not in row.group
        assert row.group not in (".", "..")
    assert from_parquet(to_parquet(reading.rows)) == reading.rows
    named = [each is not False for each in named_rows(data, uri, stream, nobody)]
    assert len(named) == count
    left = without_rows(data, uri, named)
    assert sum(1 for _ in rows_of(left, uri, NAMES)) == count - sum(named)
    if not missing_columns(left, uri, NAMES, deciduous().object_bytes)[0]:  # JSON's columns are what some row has
        again = read_rows(left, uri, stream, lambda _: set(), nobody).rows
        assert all(row in again for row in reading.rows)  # more, where the only labels went with the rows


# Cells: what people, other systems and attackers write. The Unicode: surrogates, NUL, bidi, twins under normalisation.
ODD_TEXT = st.sampled_from(
    ["", " ", "\0", "a\0b", "\u202eann", "e\u0301", "\u00e9", "\ufeff", "\ud800", "\x1f", "..", ".", "../../etc/passwd",
     "/etc/passwd", "file:///etc/passwd", "a\nb", 'a"b', "NaN", "null", "1", "1.0", "007", "\U0001f600", "x" * 300,
     "=cmd()", "';--", "\u2028", "%2e%2e"]
)  # fmt: skip
TEXT = ODD_TEXT | st.text(max_size=6) | st.just(CANARY)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ODD_TEXT, inner, max_size=2), max_leaves=4
)


def damaged(data: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Cut, overwrite and repeat pieces, at places that scale with the length."""
    for place, length, piece in cuts:
        at = place * len(data) // 1000
        data = data[:at] + piece + data[at + length :]
    return data


DAMAGE = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 40), st.binary(max_size=6)), max_size=2)


def fields(values):
    return st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, values))


@fuzz()
@example(rows=["[" * 100_000], damage=[])
@example(rows=[{"id": None, "at": [None]}], damage=[(656, 1, b"")])
@example(rows=['{"id": ' + "9" * 5000 + "}", '{"id": 1e999}'], damage=[])
@example(rows=['{"id": "\\ud800", "who": "\\u0000"}'], damage=[])
@given(rows=st.lists(fields(JSON) | JSON | st.just("{")), damage=DAMAGE)
def test_any_jsonl(rows, damage):
    first = dict.fromkeys(NAMES, "sure")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in [first, *rows]]
    check(damaged("\n".join([*lines, ""]).encode("utf-8", "surrogatepass"), damage), "x.jsonl")


@fuzz()
@example(header=NAMES, rows=[['"' + CANARY]], damage=[])
@example(header=[CANARY, "hello"], rows=[], damage=[])
@example(header=[*NAMES, "id"], rows=[["1"] * 7], damage=[])
@example(header=NAMES, rows=[["1"] * 5, [], ["2"] * 6, ["3"] * 7], damage=[])
@example(header=NAMES, rows=[["0", "a", "0", "b", "", ""], ["1", "a", "\ud800", "b", "c", ""]], damage=[])
@given(
    header=st.permutations(NAMES) | st.lists(st.sampled_from([*NAMES, CANARY]), max_size=7),
    rows=st.lists(st.lists(TEXT, max_size=7) | st.lists(TEXT, min_size=6, max_size=6), max_size=5),
    damage=DAMAGE,
)
def test_any_csv(header, rows, damage):
    lines = [",".join(f'"{c}"' if "\n" in c else c for c in row) for row in [header, *rows]]
    check(damaged("\r\n".join(lines).encode("utf-8", "surrogatepass"), damage), "x.csv")


def _bad_utf8(values: list) -> pa.Array:
    raw = pa.array([b"\xff\xfe" if v is None else v.encode("utf-8", "replace") for v in values], pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


INT64 = st.integers(-(2**63), 2**63 - 1)
CLEAN = TEXT.filter(lambda t: t.isprintable() or "\n" in t).map(lambda t: t.encode("utf-8", "replace").decode())


@st.composite
def columns(draw, rows):
    """An Arrow column of any type."""

    def some(values):
        return draw(st.lists(st.none() | values, min_size=rows, max_size=rows))

    kinds = {
        "text": lambda: pa.array(some(CLEAN), pa.string()),
        "large": lambda: pa.array(some(CLEAN), pa.large_string()),
        "dictionary": lambda: pa.array(some(CLEAN), pa.string()).dictionary_encode(),
        "bytes": lambda: pa.array(some(st.binary(max_size=4)), pa.binary()),
        "bad text": lambda: _bad_utf8(some(CLEAN)),
        "int": lambda: pa.array(some(INT64), pa.int64()),
        "float": lambda: pa.array(some(st.floats()), pa.float64()),
        "half": lambda: pa.array(some(st.floats(width=16)), pa.float32()),
        "bool": lambda: pa.array(some(st.booleans()), pa.bool_()),
        "ns": lambda: pa.array(some(INT64), pa.int64()).cast(pa.timestamp("ns")),
        "s": lambda: pa.array(some(INT64), pa.int64()).cast(pa.timestamp("ms", "UTC")),
        "date": lambda: pa.array(some(st.integers(-(2**31), 2**31 - 1)), pa.int32()).cast(pa.date32()),
        "duration": lambda: pa.array(some(INT64), pa.int64()).cast(pa.duration("ns")),
        "decimal": lambda: pa.array(some(st.decimals(-999, 999, places=2)), pa.decimal128(8, 2)),
        "list": lambda: pa.array(some(st.lists(CLEAN, max_size=2)), pa.list_(pa.string())),
        "struct": lambda: pa.array([{"a": v} for v in some(CLEAN)], pa.struct([("a", pa.string())])),
        "null": lambda: pa.nulls(rows),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]()


@st.composite
def tables(draw):
    rows = draw(st.integers(0, 4))
    names = draw(st.permutations(NAMES) | st.lists(st.sampled_from([*NAMES, "a.b"]), max_size=7))
    return pa.Table.from_arrays([draw(columns(rows)) for _ in names], names=list(names))


def written(table: pa.Table, **options) -> bytes:
    sink = BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@fuzz()
@given(table=tables(), compression=st.sampled_from(["none", "snappy", "zstd", "gzip"]), damage=DAMAGE)
def test_any_parquet(table, compression, damage):
    check(damaged(written(table, compression=compression), damage), "x.parquet")


@st.composite
def images(draw):
    mode = draw(st.sampled_from(["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16"]))
    kind = draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM", "TGA"]))
    sink = BytesIO()
    try:
        Image.new(mode, (draw(st.integers(1, 9)), draw(st.integers(1, 9)))).save(sink, kind)
    except (OSError, ValueError):  # a format that has no such mode
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    return sink.getvalue()


@fuzz()
@given(
    raw=st.lists(images() | st.none() | st.binary(max_size=20) | st.just(b"/etc/passwd"), max_size=3),
    damage=DAMAGE,
)
def test_any_image(raw, damage):
    content = [None if each is None else damaged(each, damage) for each in raw]
    rows = [{**dict.fromkeys(NAMES, str(n)), "text": each} for n, each in enumerate(content)]
    schema = pa.schema([(name, pa.binary() if name == "text" else pa.string()) for name in NAMES])
    stream = STREAM.model_copy(update={"task": TaskType.IMAGE})
    check(written(pa.Table.from_pylist(rows, schema)), "x.parquet", stream)


def test_the_limit_on_what_an_object_unpacks_to_is_set():
    assert deciduous().object_bytes == 2 << 30
