from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from registry.errors import SourceError
from registry.stream import Columns, Stream, TaskType
from tasks.identity import keyed_hash
from tasks.reading import read_rows

STREAM = Stream(name="mail", backbone="b", source="*", columns=Columns(id="id", subject="who", input="text", label="y"))
NOBODY = {"subject": set(), "record": set()}


def parquet(rows: list[dict]) -> bytes:
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def row(id_: str = "1", **changes) -> dict:
    return {"id": id_, "who": "ann", "text": "hello", "y": "ham", **changes}


def read(rows: list[dict], stream: Stream = STREAM, seen=lambda _: set(), suppressed=NOBODY):
    return read_rows(parquet(rows), "x.parquet", stream, seen, suppressed)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "missing id"),
        ({"who": " "}, "missing subject"),
        ({"y": None}, "missing label"),
        ({"text": ""}, "input is empty"),
        ({"text": None}, "input is missing"),
        ({"text": "x" * 1_000_001}, "input is over-long"),
        ({"id": "1"}, "duplicate id in this batch"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(changes, reason):
    reading = read([row("1"), {**row("2"), **changes}])
    assert [q.reason for q in reading.quarantined] == [reason]
    assert len(reading.rows) == 1


def test_a_known_id_is_refused_and_a_suppressed_subject_never_seen():
    known = keyed_hash("record", "mail", "1")
    reading = read(
        [row("1"), row("2", who="bob"), row("3")],
        seen=lambda keys: {known} & set(keys),
        suppressed={"subject": {keyed_hash("subject", "mail", "bob")}, "record": set()},
    )
    assert [q.reason for q in reading.quarantined] == ["id already taken in with an earlier batch"]
    assert (len(reading.rows), reading.suppressed) == (1, 1)


def test_a_stream_without_labels_is_read():
    assert [r.label for r in read([row("1", y=None), row("2", y=None)]).rows] == [None, None]


def test_rows_come_in_an_order_that_is_not_the_sources():
    rows = [row(str(n)) for n in range(20)]
    assert read(rows).rows == read(rows[::-1]).rows


@pytest.mark.parametrize(
    ("data", "uri", "match"),
    [
        (parquet([row()])[:-20], "x.parquet", "cannot be read"),
        (b"not json", "x.jsonl", "cannot be read"),
        (parquet([{"a": 1}]), "x.parquet", "no column for id: id, subject: who"),
    ],
)
def test_a_bad_object_names_itself_and_the_remedy(data, uri, match):
    with pytest.raises(SourceError, match=match):
        read_rows(data, uri, STREAM, lambda _: set(), NOBODY)


def test_images_are_decoded_before_they_are_accepted():
    stream = STREAM.model_copy(update={"task": TaskType.IMAGE})
    good = BytesIO()
    Image.new("RGB", (8, 8)).save(good, "PNG")
    reading = read([row("1", text=good.getvalue()), row("2", text=good.getvalue()[:40])], stream)
    assert [q.reason for q in reading.quarantined] == ["image cannot be decoded"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({name: st.none() | st.text(max_size=8) for name in ("id", "who", "text", "y")}),
        min_size=1,
        max_size=8,
    )
)
def test_every_row_is_accepted_or_has_a_reason(rows):
    table = [{**row("sure"), **r} for r in rows] + [row("anchor")]
    reading = read(table)
    assert len(reading.rows) + len(reading.quarantined) == len(table)
    assert all(q.reason for q in reading.quarantined)
