"""Which files and keys become objects, whatever they are called and wherever they point."""

import os
import re
import subprocess
import sys

import pytest

from registry.errors import SourceError
from tasks import source


def names(folder) -> list[str]:
    return [source.batch_name(uri) for uri, _ in source.list_objects(str(folder))]


def test_links_devices_and_folders_are_no_objects(tmp_path):
    inbox, outside = tmp_path / "inbox", tmp_path / "secret.csv"
    inbox.mkdir()
    outside.write_text("id,text\n")
    (inbox / "good.csv").write_text("id,text\n")
    (inbox / "inside.csv").symlink_to(inbox / "good.csv")
    (inbox / "outside.csv").symlink_to(outside)
    (inbox / "endless.csv").symlink_to("/dev/zero")
    (inbox / "nowhere.csv").symlink_to(tmp_path / "gone.csv")
    (inbox / "loop.csv").symlink_to(inbox / "loop.csv")
    (inbox / "folder.csv").mkdir()
    os.mkfifo(inbox / "pipe.csv")
    (inbox / os.fsdecode(b"\xff.csv")).write_text("id,text\n")
    assert set(names(inbox)) == {"good"}
    assert set(names(inbox / "*.csv")) == {"good"}


def test_a_pattern_around_the_home_names_none_of_its_files(tmp_path, set_variable):
    """`**/*.jsonl` took the log of predictions for a delivery, and refused it in every run."""
    set_variable("HOME", tmp_path / ".deciduous")
    for folder in ("inbox", ".deciduous/predictions"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{folder[-5:]}.jsonl").write_text("{}")
    assert names(tmp_path / "**" / "*.jsonl") == ["inbox"]
    assert names(tmp_path / ".deciduous" / "*" / "*.jsonl") == ["tions"], "a stream from before goes on"


@pytest.mark.parametrize("where", ["home/inbox", "home/inbox/*.csv", "home/inbox/01.csv", "linked", "home", "home/*/*"])
def test_a_source_in_the_home_is_refused(tmp_path, set_variable, where):
    set_variable("HOME", tmp_path / "home")
    (tmp_path / "home" / "inbox").mkdir(parents=True)
    (tmp_path / "home" / "inbox" / "01.csv").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "home" / "inbox")
    with pytest.raises(
        SourceError, match=f"{re.escape(where)}' lies in the home .*move the folder out, or name another home"
    ):
        source.refuse_in_home(str(tmp_path / where))
    for elsewhere in (tmp_path, tmp_path / "home-two", tmp_path / "*.csv", "s3://home/inbox"):
        source.refuse_in_home(str(elsewhere))


@pytest.mark.parametrize(
    "key", ["a#1.csv", "a?b=c.csv", "a b.csv", "\u202ea.csv", "e\u0301.csv", "[x].csv", "%2e%2e.csv"]
)
def test_any_key_is_read_as_it_is_called(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=f"in/{key}", Body=key.encode())
    ((uri, tag),) = source.list_objects(f"s3://{bucket}/in/")
    delivery, data = source.fetch(uri, tag)
    assert (delivery.uri, data) == (f"s3://{bucket}/in/{key}", key.encode())


def test_brackets_in_a_pattern_are_part_of_a_name(s3, bucket, tmp_path):
    """In S3 they were a class of characters, and `in[1]` named `in1`."""
    for folder in ("in[1]", "in1"):
        for name in ("a[2].csv", "a2.csv"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_text("id,text\n")
            s3.put_object(Bucket=bucket, Key=f"{folder}/{name}", Body=b"id,text\n")
    for root in (f"s3://{bucket}", str(tmp_path)):
        for pattern, found in (("in[1]/*.csv", {"a[2].csv", "a2.csv"}), ("*[1]/a[2]*", {"a[2].csv"})):
            uris = {uri for uri, _ in source.list_objects(f"{root}/{pattern}")}
            assert uris == {f"{root}/in[1]/{name}" for name in found}


def test_what_is_too_large_or_gone_is_refused_by_name(s3, bucket, tmp_path, set_variable):
    s3.put_object(Bucket=bucket, Key="x.csv", Body=b"x" * 100)
    (tmp_path / "x.csv").write_bytes(b"x" * 100)
    set_variable("OBJECT_BYTES", 99)
    for uri in (f"s3://{bucket}/x.csv", str(tmp_path / "x.csv")):
        with pytest.raises(SourceError, match=r"x\.csv has 100 bytes, at most 99 .*deliver it in parts"):
            source.fetch(uri, "")
    for uri in (f"s3://{bucket}/gone.csv", str(tmp_path / "gone.csv")):
        with pytest.raises(SourceError, match=r"gone\.csv"):
            source.fetch(uri, "")


MEMORY = """
import resource, sys
from tasks.reading import read_rows
from tasks.rows import to_parquet
from registry.sections import Columns
from registry.stream import Stream
stream = Stream(name="mail", backbone="b", source="*", columns=Columns(id="id", subject="who"))
rows, kind = int(sys.argv[1]), sys.argv[2]
if kind == "csv":
    lines = ["id,who,text,label"] + [f"{n},person-{n % 9999},some words about {n},{n % 9}" for n in range(rows)]
else:
    lines = ['{"id": %d, "who": "person-%d", "text": "some words about %d", "label": %d}' % (n, n % 9999, n, n % 9)
             for n in range(rows)]
data = "\\n".join([*lines, ""]).encode()
del lines
reading = read_rows(data, "x." + kind, stream, lambda _: set(), {"subject": set(), "record": set()})
assert len(reading.rows) == rows
assert len(to_parquet(reading.rows)) > 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.services
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_batch_of_a_million_rows_stays_within_three_kilobytes_a_row(kind):
    """A row is its two keyed hashes, its text and its place in the order, once as objects and once as Parquet."""
    peaks = [
        int(subprocess.run([sys.executable, "-c", MEMORY, str(rows), kind], check=True, stdout=subprocess.PIPE).stdout)
        for rows in (1000, 1_000_000)
    ]
    print(f"{kind}: {peaks[0] / 1e6:.0f} MB for 1e3 rows, {peaks[1] / 1e6:.0f} MB for 1e6")
    assert (peaks[1] - peaks[0]) / 999_000 < 3000


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("gs://bucket/in", "neither an s3:// address nor a path"),
        ("S3://bucket/in", "neither an s3:// address nor a path"),
        ("file:///tmp/in", "neither an s3:// address nor a path"),
        ("s3:///in/*.csv", "names no bucket"),
        ("/nowhere/*.csv", "matches no .parquet, .jsonl, .csv object; check the folder and pattern"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_by_name(address, told):
    with pytest.raises(SourceError, match=re.escape(address) + ".* " + re.escape(told)):
        source.list_objects(address)


def test_an_object_of_another_address_is_no_path():
    with pytest.raises(SourceError, match=r"'S3://bucket/in\.csv' is neither an s3:// address nor a path"):
        source.fetch("S3://bucket/in.csv", "")


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_named():
    with pytest.raises(SourceError, match="bucket 'no-such-bucket' cannot be listed"):
        source.list_objects("s3://no-such-bucket/in/")
    with pytest.raises(SourceError, match="there is no bucket 'no-such-bucket'"):
        source.fetch("s3://no-such-bucket/in/x.csv", "")


@pytest.mark.usefixtures("s3")
def test_an_address_that_s3_cannot_have_is_no_s3_that_does_not_answer():
    with pytest.raises(SourceError, match="'no bucket' is no name of a bucket"):
        source.list_objects("s3://no bucket/in/")
    for address in ("s3://no bucket/in/x.csv", "s3://inbox", "s3://inbox/"):
        with pytest.raises(SourceError, match=f"{address} names no object of a bucket"):
            source.fetch(address, "")


def test_a_pattern_may_stand_for_folders(tmp_path):
    for name in ("in1/b.jsonl", "in2/b.jsonl", "in2/deep/b.jsonl", "out/b.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")

    def found(pattern):
        return [os.path.relpath(uri, tmp_path) for uri, _ in source.list_objects(f"{tmp_path}/{pattern}")]

    assert found("in*/b.jsonl") == ["in1/b.jsonl", "in2/b.jsonl"]
    assert found("in2/**/*.jsonl") == ["in2/b.jsonl", "in2/deep/b.jsonl"]
    assert found("**/b.jsonl") == ["in1/b.jsonl", "in2/b.jsonl", "in2/deep/b.jsonl", "out/b.jsonl"]


def test_a_bucket_without_a_prefix_is_a_source(s3, bucket):
    for key in ("a.csv", "in/b.csv"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"id,text\n")
    assert names(f"s3://{bucket}/") == names(f"s3://{bucket}") == ["a", "b"]
    assert names(f"s3://{bucket}/in") == ["b"]


def test_endings_may_be_upper_case_in_a_folder_and_in_a_bucket(s3, bucket, tmp_path):
    (tmp_path / "X.CSV").write_text("id,text\n")
    s3.put_object(Bucket=bucket, Key="in/Y.JSONL", Body=b"{}")
    assert names(tmp_path) == ["X"]
    assert names(f"s3://{bucket}/in/") == ["Y"]


def test_files_of_other_endings_are_named_in_a_folder_and_in_a_bucket(s3, bucket, tmp_path, caplog):
    for name in ("a.csv", "b.xlsx", "notes.txt"):
        (tmp_path / name).write_text("id,text\n")
        s3.put_object(Bucket=bucket, Key=f"in/{name}", Body=b"id,text\n")
    s3.put_object(Bucket=bucket, Key="other/c.gz", Body=b"")
    s3.put_object(Bucket=bucket, Key="in/deep/", Body=b"")
    for place in (tmp_path, f"s3://{bucket}/in/"):
        caplog.clear()
        with caplog.at_level("INFO", "deciduous"):
            assert names(place) == ["a"]
        assert "2 files are left out" in caplog.text
        assert "'b.xlsx', 'notes.txt'" in caplog.text
