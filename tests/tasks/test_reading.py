import csv
import json
import struct
import zlib
from io import BytesIO, StringIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from registry.errors import SourceError
from registry.sections import Columns, TaskType
from registry.stream import Stream
from tasks.formats import MAX_ROWS, unpacked, without_rows
from tasks.identity import keyed_hash
from tasks.learning.images import open_image
from tasks.reading import named_rows, read_rows

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
        ({"y": "a\0b"}, "label holds a control character"),
        ({"y": "x" * 201}, "label is over-long"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(changes, reason):
    reading = read([row("1"), {**row("2"), **changes}])
    assert [q.reason for q in reading.quarantined] == [reason]
    assert len(reading.rows) == 1


def test_a_json_row_that_holds_a_column_twice_is_refused_alone():
    """The last value won, and nobody was told; a column that the stream does not name is nobody's concern."""
    lines = [
        '{"id": "1", "who": "ann", "text": "a", "y": "ham", "more": {"y": 1, "y": 2}, "x": 1, "x": 2}',
        '{"id": "2", "who": "ann", "text": "a", "y": "ham", "y": "spam"}',
        '{"id": "3", "who": "bob", "who": "ann", "text": "a", "y": "ham"}',
    ]
    reading = read_rows("\n".join(lines).encode(), "x.jsonl", STREAM, lambda _: set(), NOBODY)
    assert [(q.row, q.reason) for q in reading.quarantined] == [(n, "a column stands twice in the row") for n in (1, 2)]
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
        (b'{"id": 1, "who": "ann", "te', "x.jsonl", "its last line is cut"),
        (b'id,who,text,y\n1,ann,"hello,ham\n', "x.csv", "line 2: unexpected end of data"),
        (b"id,who,text,y,id\n1,ann,hello,ham,2\n", "x.csv", "has the column 'id' 2 times"),
        (b"", "x.csv", "no column for id"),
        (b"", "x.jsonl", "no column for id"),
    ],
)
def test_a_bad_object_names_itself_and_the_remedy(data, uri, match):
    with pytest.raises(SourceError, match=match):
        read_rows(data, uri, STREAM, lambda _: set(), NOBODY)


def lines(*rows: dict | str) -> bytes:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows).encode("utf-8", "surrogatepass")


def read_bytes(data: bytes, uri: str, stream: Stream = STREAM):
    return read_rows(data, uri, stream, lambda _: set(), NOBODY)


def test_a_line_that_is_no_row_is_refused_alone():
    bad = ["{", "[1]", '{"id": ' + "9" * 5000 + "}", "[" * 100_000, '{"id": "\\ud800"}', '{"id": ["1"], "who": "ann"}']
    reading = read_bytes(lines(row("1"), *bad, row(2)), "x.jsonl")
    assert len(reading.rows) == 2
    assert [(q.row, q.reason) for q in reading.quarantined] == [
        (1, "row is not JSON"),
        (2, "row is not a JSON object"),
        (3, "row is not JSON"),
        (4, "row is not JSON"),
        (5, "id is no valid Unicode"),
        (6, "id is list, not a plain value"),
    ]


def test_a_row_of_a_csv_with_other_cells_or_bytes_is_refused_alone():
    data = b'id,who,text,y\n1,ann,hello,ham\n2,bob\n\n3,eve,\xff,ham\n4,flo,"two\nlines",ham\n'
    reading = read_bytes(data, "x.csv")
    assert {r.input for r in reading.rows} == {b"hello", b"two\nlines"}
    assert [q.reason for q in reading.quarantined] == [
        "row has another number of cells than the header",
        "input is no valid Unicode",
    ]
    assert without_rows(data, "x.csv", [True, False, False, False]) == data.replace(b"1,ann,hello,ham\n", b"")
    assert without_rows(data, "x.csv", [False, False, False, True]).endswith(b"3,eve,\xff,ham\n")


def test_a_mark_before_quoted_names_belongs_to_no_name():
    data = '\ufeff"id","who","text","y"\r\n"1","ann","hello","ham"\r\n"2","bob","bye","ham"\r\n'.encode()
    assert {r.input for r in read_bytes(data, "x.csv").rows} == {b"hello", b"bye"}
    assert without_rows(data, "x.csv", [True, False]) == data.replace(b'"1","ann","hello","ham"\r\n', b"")


def test_a_blank_line_behind_a_mark_is_no_row():
    data = b"\xef\xbb\xbf\n" + lines(row("1"), row("2"))
    assert without_rows(data, "x.jsonl", [True, False]) == lines(row("2"))


@pytest.mark.parametrize("kind", ["flat", "list", "struct", "map"])
def test_categories_of_rows_that_left_leave_parquet_too(kind):
    """As pandas and polars write them: the list of categories holds a value that stands in no row any more."""
    names = pa.array(["ann of the lake", "bob", "eve"]).dictionary_encode()
    column = {
        "flat": names,
        "list": pa.ListArray.from_arrays([0, 1, 2, 3], names),
        "struct": pa.StructArray.from_arrays([names], ["who"]),
        "map": pa.MapArray.from_arrays([0, 1, 2, 3], pa.array(["who"] * 3), names),
    }[kind]
    # two columns of one name that nobody asks for
    sink = BytesIO()
    pq.write_table(pa.table([["1", "2", "3"], column, column], ["id", "x", "x"]), sink)
    left = without_rows(sink.getvalue(), "x.parquet", [True, False, False])
    assert (b"ann of the lake" in sink.getvalue(), b"ann of the lake" in left) == (True, False)
    found = pq.ParquetFile(BytesIO(left)).read()
    assert (found.num_rows, found[1].to_pylist()) == (2, column.to_pylist()[1:])


def test_a_csv_without_a_header_is_not_repeated_in_the_error():
    with pytest.raises(SourceError) as caught:
        read_bytes(b"17,ann@example.org,my secret,ham\n", "x.csv")
    assert "ann" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (row("7"), row(7.0)),  # what a writer makes of whole numbers beside a gap
        (row("Jos\u00e9"), row("Jose\u0301")),
        (row("7"), row(" 7 ")),
    ],
)
def test_two_spellings_of_an_id_are_one(one, other):
    assert [q.reason for q in read_bytes(lines(one, other), "x.jsonl").quarantined] == ["duplicate id in this batch"]


def test_an_id_means_the_same_in_every_format():
    """Nothing is guessed from the look of a cell: a ticket has to find the subject whatever brought it."""
    for id_ in ("007", "2020-01-01 00:00:00", "1e5", "True", "NA"):
        data = f"id,who,text,y\n{id_},{id_},hello,ham\n".encode()
        (by_csv,) = read_bytes(data, "x.csv").rows
        (by_json,) = read_bytes(lines(row(id_, who=id_)), "x.jsonl").rows
        (by_parquet,) = read([row(id_, who=id_)]).rows
        assert by_csv.record == by_json.record == by_parquet.record == keyed_hash("record", "mail", id_)
        assert by_csv.subject == keyed_hash("subject", "mail", id_)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ("..", "group is no name"),
        (".", "group is no name"),
        ("a\nb", "group holds a control character"),
        ("x" * 201, "group is over-long"),
    ],
)
def test_a_group_is_part_of_a_key_and_has_to_fit_there(group, reason):
    stream = STREAM.model_copy(update={"columns": STREAM.columns.model_copy(update={"group": "team"})})
    reading = read([row("1", team="a/b"), row("2", team=group)], stream)
    assert [q.reason for q in reading.quarantined] == [reason]


@pytest.mark.parametrize("path", ["/etc/passwd", "file:///etc/passwd", b"/etc/passwd"])
def test_a_path_is_never_opened(path):
    image = STREAM.model_copy(update={"task": TaskType.IMAGE})
    (bad,) = read([row("1", text=path)], image).quarantined
    assert bad.reason in ("input is str, not image bytes", "image cannot be decoded")
    if isinstance(path, str):
        assert read([row("1", text=path)]).rows[0].input == path.encode()


def test_times_outside_of_the_calendar_are_their_rows_fault():
    table = pa.table(
        {"id": ["1", "2"], "who": ["a", "b"], "text": ["x", "y"], "y": ["n", "n"],
         "at": pa.array([0, 2**62], pa.int64()).cast(pa.timestamp("ms"))}
    )  # fmt: skip
    stream = STREAM.model_copy(update={"columns": STREAM.columns.model_copy(update={"time": "at"})})
    sink = BytesIO()
    pq.write_table(table, sink)
    assert [q.reason for q in read_bytes(sink.getvalue(), "x.parquet", stream).quarantined] == [
        "a value cannot be read"
    ]


def test_an_object_that_would_fill_the_memory_is_refused(set_variable):
    """A megabyte that two thousand rows point at, and rows that are nothing but a number in the footer."""
    set_variable("OBJECT_BYTES", 100_000_000)
    sink = BytesIO()
    every = pa.array([str(n) for n in range(2000)])
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2000), ["x" * 999_999])
    pq.write_table(pa.table({"id": every, "who": every, "text": text, "y": every}), sink)
    assert len(sink.getvalue()) < 200_000
    with pytest.raises(SourceError, match=r"x\.parquet unpacks to more than 100000000 bytes"):
        read_bytes(sink.getvalue(), "x.parquet")
    sink = BytesIO()
    pq.write_table(pa.table({name: pa.nulls(MAX_ROWS + 1) for name in ("id", "who", "text", "y")}), sink)
    assert len(sink.getvalue()) < 200_000
    with pytest.raises(SourceError, match=r"x\.parquet claims 20000001 rows"):
        read_bytes(sink.getvalue(), "x.parquet")


def png(width: int, height: int) -> bytes:
    """A header that promises so many pixels, and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(100_000, 100_000), "image has too many pixels"),
        (png(9_000, 9_000), "image has too many pixels"),  # Pillow alone would warn
        (png(99, 99), "image cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image cannot be decoded"),  # no Ghostscript is run
    ],
)
def test_an_image_that_would_fill_the_memory_is_refused(data, reason):
    stream = STREAM.model_copy(update={"task": TaskType.IMAGE})
    assert [q.reason for q in read([row("1", text=data)], stream).quarantined] == [reason]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_an_image_of_32_bits_is_refused_when_it_is_new_and_opened_where_it_is_stored(mode):
    """Pillow cuts every value off at 255: it was learned as a white or a black one."""
    sink = BytesIO()
    Image.new(mode, (2, 2), 1000).save(sink, "TIFF")
    reading = read([row("1", text=sink.getvalue())], STREAM.model_copy(update={"task": TaskType.IMAGE}))
    assert [q.reason[:30] for q in reading.quarantined] == ["image has 32 bits a pixel, of "]
    assert open_image(sink.getvalue()).getpixel((0, 0)) == (255, 255, 255)


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


@pytest.mark.parametrize(
    ("uri", "data", "told"),
    [
        ("x.csv", b"", "it is empty"),
        ("x.jsonl", b"\n", "it is empty"),
        ("x.jsonl", b'[{"id": "1", "who": "a"}]\n', "no line of it is a JSON object"),
        ("x.jsonl", b'[{"id": "1", "who": "a"}]', "no line of it is a JSON object"),
        ("x.csv", b"id;who;text;y\n1;a;hello;ham\n", "cut at its commas, names others"),
        ("X.JSONL", b'{"id": "1", "words": "hello"}\n', "it has id, words"),
    ],
)
def test_an_object_without_the_columns_says_what_it_is_instead(uri, data, told):
    with pytest.raises(SourceError, match=rf"{uri} has no column for .*; .*{told}.*correct the object, or `columns`"):
        read_bytes(data, uri)


@pytest.mark.parametrize(
    ("uri", "data"),
    [("x.csv", b"id,who,text\n1,a,hello\n"), ("x.jsonl", b'{"id": "1", "who": "a", "text": "hello"}\n')],
)
def test_an_object_that_lacks_the_label_alone_says_how_a_batch_without_labels_comes(uri, data):
    with pytest.raises(SourceError, match=r"no column for label: y; .* without labels has the column 'y' too, with no"):
        read_bytes(data, uri)
    column = data.replace(b"text\n", b"text,y\n").replace(b"hello\n", b"hello,\n").replace(b"}", b', "y": null}')
    assert [(row.label, row.input) for row in read_bytes(column, uri).rows] == [(None, b"hello")]


def test_an_ending_in_upper_case_says_the_same():
    assert [row.input for row in read_bytes(lines(row("1")), "X.JSONL").rows] == [row("1")["text"].encode()]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1))
def test_a_text_is_found_in_the_bytes_or_in_what_is_unpacked(texts):
    csv.writer(written := StringIO(newline="")).writerows([["id", "input"], *([n, t] for n, t in enumerate(texts))])
    lines = "\n".join(json.dumps({"input": text}) for text in texts)
    for name, data in (("s.csv", written.getvalue().encode()), ("s.jsonl", lines.encode())):
        found = [data, *unpacked(data, name, 1 << 30)]
        assert all(any(text.encode() in each for each in found) for text in texts)


@pytest.mark.parametrize(("name", "data"), [("s.csv", b"id,input\n1,a b\n"), ("s.jsonl", b'{"input": "a b"}\n')])
def test_what_is_not_escaped_is_not_read_as_rows_to_be_searched(name, data):
    assert list(unpacked(data, name, 1 << 30)) == []


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize("named", ["7", "ann", "cy"])
def test_a_row_without_its_subject_is_named_by_any_value_of_it(ending, named):
    """A number is what it would be in the column of ids; a row that has its id is no other record."""
    rows = [
        row("1", who=None, sender="ann", about={"number": 7.0}, codes=[b"cy" if ending == "parquet" else "cy", None]),
        row("2", who=None, sender="bo", about={"number": 8.0}, codes=None),
        row("3", who="bo", sender="ann", about={"number": 7.0}, codes=None),
    ]
    data = parquet(rows) if ending == "parquet" else "\n".join(map(json.dumps, rows)).encode()
    suppressed = {"subject": {keyed_hash("subject", "mail", named)}, "record": {keyed_hash("record", "mail", "8")}}
    assert named_rows(data, f"x.{ending}", STREAM, suppressed) == [True, False, False]
