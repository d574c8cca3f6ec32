"""What a deletion does to source objects: learned, refused, replaced, gone, or never taken in."""

import io
import json
from functools import partial

import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select

from infra import database, storage
from infra.settings import settings
from registry import artifacts, catalog, holding, versions
from registry.errors import SourceError
from registry.records import BatchState, TicketState
from registry.tables import SubjectRow
from tasks import (
    batches,
    held_batches,
    purging,
)
from tasks import tickets as opening
from tasks.inbox import source_objects
from tasks.sweeping import _by_owner
from tests.flows.adversary import (
    assert_complete,
    certificate_of,
    forget,
    in_the_middle_of,
    learn,
    of_inbox,
    open_ticket,
    put_in_inbox,
)
from tests.flows.conftest import deliver, make_stream

pytestmark = pytest.mark.usefixtures("ready", "plain_steps")


def in_our_inbox(name: str, backbone, folder, ending: str = "parquet"):
    """A stream with one batch that it learned from our inbox bucket, 60 rows of ten persons."""
    stream = make_stream(name, backbone, folder, source=f"s3://{settings().inbox_bucket}/{name}/*.{ending}")
    rows = deliver(folder, "01", ["red", "blue"], rows=60)
    {"parquet": put_in_inbox, "jsonl": put_lines}[ending](name, "01", rows)
    learn(stream)
    return stream


def put_lines(stream: str, name: str, rows: list[dict], cut: int = 0) -> None:
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    key = f"{stream}/{name}.jsonl"
    storage.s3().put_object(Bucket=settings().inbox_bucket, Key=key, Body=body[: len(body) - cut])


def lines_of(stream: str, name: str) -> list[dict]:
    where = {"Bucket": settings().inbox_bucket, "Key": f"{stream}/{name}.jsonl"}
    return [json.loads(line) for line in storage.s3().get_object(**where)["Body"].read().splitlines()]


def test_rows_that_were_refused_leave_their_source_object_too(backbone, tmp_path):
    """Only the list of refused rows knows this subject; the object is JSONL, in our inbox."""
    name = "refused-rows"
    rows = deliver(tmp_path, "01", ["red", "blue"], rows=60)
    rows[7] = {**rows[7], "who": "only-refused", "topic": None}
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    storage.s3().put_object(Bucket=settings().inbox_bucket, Key=f"{name}/01.jsonl", Body=body)
    stream = make_stream(name, backbone, tmp_path, source=f"s3://{settings().inbox_bucket}/{name}/*.jsonl")
    learn(stream)
    ticket = open_ticket(stream, "only-refused")
    assert ticket.records == 0
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    with database.transaction() as session:  # such rows shaped nothing, so what serves goes on serving
        assert versions.alias_of(session, name, versions.CHAMPION) == 1
    left = storage.s3().get_object(Bucket=settings().inbox_bucket, Key=f"{name}/01.jsonl")["Body"].read()
    assert (b"only-refused" in body, b"only-refused" in left, len(left.splitlines())) == (True, False, 59)
    assert artifacts.sweep_bytes(storage.s3(), settings().inbox_bucket, [b"only-refused"], f"{name}/") == []
    learn(stream)  # the rewritten object is not a new batch
    with database.transaction() as session:
        assert len(catalog.batches(session, name)) == 1


def test_an_object_that_a_ticket_emptied_is_no_bad_delivery_to_a_catalog_begun_since(backbone, tmp_path):
    name = "emptied-before"
    stream = make_stream(name, backbone, tmp_path, source=f"s3://{settings().inbox_bucket}/{name}/*.jsonl")
    put_lines(name, "01", [])
    with pytest.raises(SourceError, match="it is empty"):  # nobody was forgotten: it is the owner's mistake
        taken_in(stream)
    open_ticket(stream, "ann")
    taken_in(stream)
    with database.transaction() as session:
        (batch,) = catalog.batches(session, name)
    assert (batch.state, "a deletion may have taken them" in batch.reason) == (BatchState.DISCARDED, True)
    assert batches.discover.fn(stream) == []


def test_refused_rows_of_which_nobody_can_say_whose_they_are_leave_too(backbone, tmp_path):
    """The list of refused rows knows no name of them: a broken line, a name that is a list or under another key."""
    name = "nobodys-rows"
    stream = make_stream(name, backbone, tmp_path, source=f"s3://{settings().inbox_bucket}/{name}/*.jsonl")
    row, *rows = deliver(tmp_path, "01", ["red"])
    put_lines(name, "01", [{**row, "who": ["in-a-list"]}, {**row, "who": None, "from": {"is": "elsewhere"}}, *rows])
    where = {"Bucket": settings().inbox_bucket, "Key": f"{name}/01.jsonl"}
    whole = storage.s3().get_object(**where)["Body"].read()
    storage.s3().put_object(**where, Body=b'{"who": "broken", "words": "a" b}\n' + whole)
    taken_in(stream)
    for subject, left in (("nobody", 41), ("in-a-list", 40), ("elsewhere", 39), ("broken", 39)):
        ticket = open_ticket(stream, subject)
        forget(ticket.ticket_id)
        assert_complete(ticket.ticket_id)
        assert len(lines_of(name, "01")) == left
    assert batches.discover.fn(stream) == []


def test_an_object_that_was_refused_for_rows_that_nobody_can_read_makes_an_exception(backbone, tmp_path):
    """A comma too many in every row: whoever is named, it may be theirs."""
    name = "commas"
    stream = make_stream(name, backbone, tmp_path, source=f"s3://{settings().inbox_bucket}/{name}/*.csv")
    put_csv = partial(storage.s3().put_object, Bucket=settings().inbox_bucket, Key=f"{name}/01.csv")
    put_csv(Body=b"key,who,words,topic\n1,ann,a b c,red,\n2,ben,a c b,red,\n")
    with pytest.raises(SourceError, match="no good row"):
        taken_in(stream)
    ticket = open_ticket(stream, "ann")
    assert (
        "01.csv has 2 rows that cannot be read; correct and deliver again, or delete it"
        in forget(ticket.ticket_id).note
    )
    put_csv(Body=b"key,who,words,topic\n1,ann,a b c,red\n2,ben,a c b,red\n")
    opening.reopen_ticket(ticket.ticket_id, "ben", "it was corrected")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    assert artifacts.sweep_bytes(storage.s3(), settings().inbox_bucket, [b"ann"], f"{name}/") == []


def test_a_discarded_batch_that_had_refused_rows_is_cleaned_by_name_and_holds_no_ticket_up(backbone, tmp_path):
    """Its list of refused rows went with it; its source object still has their owners."""
    stream = in_our_inbox("discarded", backbone, tmp_path, "jsonl")
    rows = [{**row, "topic": None} for row in deliver(tmp_path, "02", ["red", "blue"], rows=30)]
    put_lines(stream.name, "02", [{**row, "who": f"only-held-{n}"} for n, row in enumerate([*rows, rows[3]])])
    learn(stream)
    with database.transaction() as session:
        (held,) = catalog.batches(session, stream.name, BatchState.HELD)
        subjects = session.scalar(select(func.count()).select_from(SubjectRow))
    assert held.quarantined == 1
    held_batches.discard_batch.fn(held.batch_id)
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(SubjectRow)) == subjects - 30
    ticket = open_ticket(stream, "only-held-30", "person-1")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    assert len(lines_of(stream.name, "02")) == 30


def test_a_source_object_that_is_gone_or_broken_stops_no_ticket(backbone, tmp_path):
    """Taken away, it lies under a delete marker; overwritten by what cannot be read, it is left and named."""
    stream = in_our_inbox("taken-away", backbone, tmp_path)
    where = {"Bucket": settings().inbox_bucket, "Key": f"{stream.name}/01.parquet"}
    storage.s3().put_object(**where, Body=b"PAR1 and no more")
    ticket = open_ticket(stream, "person-3")
    assert forget(ticket.ticket_id).state == TicketState.EXCEPTION
    (refused,) = certificate_of(ticket.ticket_id)["purge"]["refused"]
    assert "01.parquet cannot be read" in refused
    assert "deliver it again, whole, or delete it" in refused
    storage.s3().delete_object(**where)
    opening.reopen_ticket(ticket.ticket_id, "ann", "it was taken away")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    assert artifacts.list_versions(storage.s3(), where["Bucket"], where["Key"]) == []


@pytest.mark.parametrize("when", ["before the ticket", "while its object is rewritten"])
def test_what_is_delivered_under_the_same_key_is_learned_by_the_next_run(backbone, tmp_path, monkeypatch, when):
    stream = in_our_inbox(f"again-{when[:3]}", backbone, tmp_path, "jsonl")
    rows = deliver(tmp_path, "01", ["red", "blue"], rows=60, first=500)
    if when == "before the ticket":
        put_lines(stream.name, "01", rows)
    else:
        in_the_middle_of(monkeypatch, artifacts, "replace_object", lambda: put_lines(stream.name, "01", rows))
    ticket = open_ticket(stream, "person-3")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    assert lines_of(stream.name, "01") == [row for row in rows if row["who"] != "person-3"]
    key = f"{stream.name}/01.jsonl"
    assert len(artifacts.list_versions(storage.s3(), settings().inbox_bucket, key)) == 1
    learn(stream)
    with database.transaction() as session:
        assert [batch.rows for batch in catalog.batches(session, stream.name)] == [60, 54]
    assert batches.discover.fn(stream) == []


def test_objects_that_were_never_taken_in_are_looked_through_too(backbone, tmp_path):
    """Compressed, cut, replaced, all of one person's: whatever names the target goes, what cannot be read is named."""
    stream = in_our_inbox("never-in", backbone, tmp_path)
    stream = stream.model_copy(update={"source": f"s3://{settings().inbox_bucket}/never-in/*"})
    rows = deliver(tmp_path, "02", ["red", "blue"], rows=60)
    put_in_inbox(stream.name, "02", [{**row, "who": "person-3"} for row in rows])
    put_in_inbox(stream.name, "02", [row for row in rows if row["who"] != "person-3"])  # over what held more
    put_in_inbox(stream.name, "03", [{**row, "key": f"03-{n}"} for n, row in enumerate(rows)])
    put_in_inbox(stream.name, "04", [{**row, "key": f"04-{n}", "who": "person-3"} for n, row in enumerate(rows)])
    put_in_inbox(stream.name, "05", [{"subject": "person-3", "text": rows[3]["words"]}])
    put_lines(stream.name, "06", [{**row, "key": f"06-{n}"} for n, row in enumerate(rows)], cut=20)
    ticket = open_ticket(stream, "person-3")
    with database.transaction() as session:
        catalog.save_stream(session, stream, catalog.backbone_digest(session, stream.name))
    assert forget(ticket.ticket_id).state == TicketState.EXCEPTION
    refused = certificate_of(ticket.ticket_id)["purge"]["refused"]
    assert [each.split()[1].rpartition("/")[2] for each in refused] == ["05.parquet", "06.jsonl"]
    assert all("or delete it" in each for each in refused)
    s3, bucket = storage.s3(), settings().inbox_bucket
    for name in ("05.parquet", "06.jsonl"):
        s3.delete_object(Bucket=bucket, Key=f"never-in/{name}")
    opening.reopen_ticket(ticket.ticket_id, "ann", "they were deleted")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    left = [version.key for version in artifacts.list_versions(s3, bucket, "never-in/")]
    assert left == [f"never-in/{name}.parquet" for name in ("01", "02", "03")]
    learn(stream)
    with database.transaction() as session:
        assert [batch.rows for batch in catalog.batches(session, stream.name)] == [60, 54, 54]


def test_an_object_of_suppressed_rows_alone_is_known_and_fails_no_run(backbone, tmp_path):
    stream = in_our_inbox("suppressed", backbone, tmp_path)
    ticket = open_ticket(stream, "person-3")
    forget(ticket.ticket_id)
    late = [{**row, "who": "person-3"} for row in deliver(tmp_path, "02", ["red", "blue"], rows=20)]
    put_in_inbox(stream.name, "02", late)
    learn(stream)
    assert batches.discover.fn(stream) == []
    with database.transaction() as session:
        last = catalog.batches(session, stream.name)[-1]
    assert (last.state, last.rows, last.suppressed) == (BatchState.DISCARDED, 0, 20)


def test_rows_that_were_kept_out_go_with_the_next_ticket_that_names_them(backbone, tmp_path):
    """They came after the first ticket, beside rows that were learned: no record and no list knows them."""
    stream = in_our_inbox("came-back", backbone, tmp_path, "jsonl")
    forget(open_ticket(stream, "person-3").ticket_id)
    put_lines(stream.name, "02", deliver(tmp_path, "02", ["red", "blue"], rows=60))
    learn(stream)
    assert len(lines_of(stream.name, "02")) == 60
    ticket = open_ticket(stream, "person-3")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    left = {row["who"] for row in lines_of(stream.name, "02")}
    assert (len(left), "person-3" in left) == (9, False)
    assert batches.discover.fn(stream) == []  # the rest is no new batch


def test_what_lies_beside_the_source_is_named_in_the_exception(backbone, tmp_path):
    """A question that somebody asked is no source object: no step rewrites it, so a person has to know which it is."""
    stream = in_our_inbox("asked", backbone, tmp_path, "jsonl")
    texts = {row["who"]: row["words"] for row in lines_of(stream.name, "01")}
    s3, bucket, key = storage.s3(), settings().inbox_bucket, "questions/1.jsonl"
    s3.put_object(Bucket=bucket, Key=key, Body=json.dumps({"words": texts["person-3"]}).encode())
    ticket = open_ticket(stream, "person-3")
    remedy = f"older version, from s3://{bucket}/{key}; then: deciduous ticket reopen {ticket.ticket_id} --reason WHY"
    assert remedy in forget(ticket.ticket_id).note
    artifacts.purge_keys(s3, bucket, [key])
    opening.reopen_ticket(ticket.ticket_id, "ann", "the questions were removed")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    # the name of an object that holds the text itself would carry it into the certificate
    s3.put_object(Bucket=bucket, Key=f"questions/{texts['person-4']}.txt", Body=texts["person-4"].encode())
    note = forget(open_ticket(stream, "person-4").ticket_id).note
    assert ("hits in bucket" in note, texts["person-4"] in note) == (True, False)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_copy_that_no_stream_took_in_is_found_though_it_is_compressed_or_escaped(backbone, tmp_path, ending):
    """Also where a stream is to read it, and has not yet, or refused it."""
    name = f"copied-{ending}"
    stream = make_stream(name, backbone, tmp_path, source=of_inbox(name))
    delivered = deliver(tmp_path, "01", ["red", "blue"], rows=60)
    rows = [{**row, "words": f"{row['words'][:36]}\u00e9{row['words'][36:]}"} for row in delivered]
    put_in_inbox(name, "01", rows)
    learn(stream)
    s3, bucket, key = storage.s3(), settings().inbox_bucket, f"archive/{name}.{ending}"
    body = s3.get_object(Bucket=bucket, Key=f"{name}/01.parquet")["Body"].read()
    s3.put_object(Bucket=bucket, Key=key, Body=body if ending == "parquet" else json.dumps({"had": rows}).encode())
    batches.open_stream.fn(make_stream(f"{name}-too", backbone, tmp_path, source=f"s3://{bucket}/archive/{name}.*"))
    ticket = open_ticket(stream, "person-3")
    assert f"from s3://{bucket}/{key}; then" in forget(ticket.ticket_id).note
    artifacts.purge_keys(s3, bucket, [key])
    opening.reopen_ticket(ticket.ticket_id, "ann", "the copy was removed")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)


def test_an_object_that_repeats_another_loses_the_rows_too(backbone, tmp_path):
    """Both are known, and the catalog knows the batch's own object alone."""
    stream = in_our_inbox("repeated", backbone, tmp_path, "jsonl")
    put_lines(stream.name, "02", lines_of(stream.name, "01"))
    learn(stream)
    assert batches.discover.fn(stream) == []
    forget(open_ticket(stream, "person-3").ticket_id)
    assert artifacts.sweep_bytes(storage.s3(), settings().inbox_bucket, [b'"person-3"'], f"{stream.name}/") == []
    assert [len(lines_of(stream.name, name)) for name in ("01", "02")] == [54, 54]
    assert batches.discover.fn(stream) == []


def test_what_another_stream_took_in_is_left_to_its_own_tickets(backbone, tmp_path):
    stream, other = (make_stream(name, backbone, tmp_path, source=of_inbox(name)) for name in ("mine", "mine-2"))
    put_in_inbox(other.name, "01", deliver(tmp_path, "01", ["red"]))
    batches.open_stream.fn(stream)
    ((uri, _),) = found = opened(other)
    take_in(other, found)
    assert _by_owner(stream, {uri}) == {"found_in": [], "also_learned_by": ["mine-2"]}


def taken_in(stream):
    return take_in(stream, opened(stream))


def take_in(stream, found):
    return [batches.read_batch.fn(stream, uri, tag) for uri, tag in found]


@pytest.mark.parametrize("meanwhile", ["overwritten", "taken-away"])
def test_what_comes_back_after_a_deletion_looked_through_its_object_is_looked_at_again(backbone, tmp_path, meanwhile):
    stream = make_stream(f"back-{meanwhile}", backbone, tmp_path, source=of_inbox(f"back-{meanwhile}"))
    put_in_inbox(stream.name, "01", deliver(tmp_path, "01", ["red"]))
    found = opened(stream)
    take_in(stream, found)
    s3, where = storage.s3(), {"Bucket": settings().inbox_bucket, "Key": f"{stream.name}/01.parquet"}
    whole = s3.get_object(**where)["Body"].read()
    if meanwhile == "overwritten":
        put_in_inbox(stream.name, "01", deliver(tmp_path, "02", ["red"]))
        taken_in(stream)
    else:
        s3.delete_object(**where)
    purging._rewrite_source(stream, set(), where["Key"])
    s3.put_object(**where, Body=whole)
    assert batches.discover.fn(stream) == found


def test_the_content_of_another_batch_in_an_objects_place_is_looked_through(backbone, tmp_path):
    """The catalog knows the object as the batch that it was, and what it holds now as the other one."""
    stream = make_stream("in-its-place", backbone, tmp_path, source=of_inbox("in-its-place"))
    for name in ("01", "02"):
        put_in_inbox(stream.name, name, deliver(tmp_path, name, ["red"]))
    taken_in(stream)
    bucket, key = settings().inbox_bucket, f"{stream.name}/02.parquet"
    storage.s3().copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": f"{stream.name}/01.parquet"})
    taken_in(stream)
    purging._rewrite_source(stream, set(), key)  # one version is left
    assert source_objects(stream, {"batches": []})[1] == {key}


def test_a_repeated_file_of_an_owner_is_counted_too(backbone, tmp_path):
    stream = make_stream("owned", backbone, tmp_path)
    deliver(tmp_path, "01", ["red", "blue"])
    for name in ("02", "03"):
        (tmp_path / f"{name}.jsonl").write_bytes((tmp_path / "01.jsonl").read_bytes())
    batch, *_ = taken_in(stream)
    assert source_objects(stream, {"batches": [batch.batch_id]})[::2] == (set(), 3)


def test_what_an_owner_repeats_of_a_part_that_is_held_is_counted_too(backbone, tmp_path):
    stream = make_stream("owned-held", backbone, tmp_path)
    deliver(tmp_path, "01", ["red", "blue"])
    (tmp_path / "02.jsonl").write_bytes((tmp_path / "01.jsonl").read_bytes())
    batch, _ = taken_in(stream)
    with database.transaction() as session:
        held = holding.set_aside(session, batch.batch_id, [batch.shards[0].shard_id], "too few rows")
    assert source_objects(stream, {"batches": [held.batch_id]})[::2] == (set(), 2)


def test_an_owners_rows_of_which_nobody_can_say_whose_they_are_are_counted(backbone, tmp_path):
    stream = make_stream("owned-broken", backbone, tmp_path)
    deliver(tmp_path, "01", ["red"])
    with (tmp_path / "01.jsonl").open("a") as file:
        file.write('{"who": "broken", "words": "a" b}\n')
    taken_in(stream)
    assert source_objects(stream, {"batches": []})[::2] == (set(), 1)


def opened(stream):
    batches.open_stream.fn(stream)
    return batches.discover.fn(stream)


def test_what_a_stream_took_in_before_its_source_moved_is_looked_through(backbone, tmp_path):
    """Compressed, so that no search for bytes sees into it: a copy of what was learned, and rows that were kept out."""
    stream = in_our_inbox("moved", backbone, tmp_path)
    s3, bucket = storage.s3(), settings().inbox_bucket
    s3.copy_object(Bucket=bucket, Key="moved/02.parquet", CopySource={"Bucket": bucket, "Key": "moved/01.parquet"})
    learn(stream)
    forget(open_ticket(stream, "person-4").ticket_id)
    rows = deliver(tmp_path, "03", ["red", "blue"], rows=60)
    put_in_inbox(stream.name, "03", [row for row in rows if row["who"] != "person-3"])
    learn(stream)
    stream = stream.model_copy(update={"source": f"s3://{bucket}/moved-on/*.parquet"})
    put_in_inbox("moved-on", "04", deliver(tmp_path, "04", ["red", "blue"], rows=60))
    learn(stream)
    for subject in ("person-3", "person-4"):
        ticket = open_ticket(stream, subject)
        forget(ticket.ticket_id)
        assert_complete(ticket.ticket_id)
    assert [whose(f"{folder}/") & {"person-3", "person-4"} for folder in ("moved", "moved-on")] == [set(), set()]


def test_what_a_stream_left_behind_where_it_read_before_is_looked_through(backbone, tmp_path):
    """An object that was replaced before it was read, and one that was never taken in; not what another stream is to
    read there."""
    stream = make_stream("behind", backbone, tmp_path, source=of_inbox("behind"))
    rows = deliver(tmp_path, "01", ["red"])
    put_in_inbox("behind", "01", rows[:1])
    put_in_inbox("behind", "01", rows)
    taken_in(stream)
    for name in ("02", "03"):
        put_in_inbox("behind", name, rows[:1])
    batches.open_stream.fn(
        make_stream("ahead", backbone, tmp_path, source=f"s3://{settings().inbox_bucket}/behind/03*")
    )
    moved = stream.model_copy(update={"source": of_inbox("moved-away")})
    assert source_objects(moved, {"batches": []})[1] == {"behind/01.parquet", "behind/02.parquet"}


def whose(prefix: str) -> set[str]:
    """Subjects of rows in any version of an object below the prefix."""
    s3, bucket = storage.s3(), settings().inbox_bucket
    found = set[str]()
    for version in artifacts.list_versions(s3, bucket, prefix):
        data = s3.get_object(Bucket=bucket, Key=version.key, VersionId=version.version_id)["Body"].read()
        found |= set(pq.read_table(io.BytesIO(data))["who"].to_pylist())
    return found


def test_what_a_deletion_took_out_is_found_again_where_its_object_comes_back(backbone, tmp_path):
    """The same bytes under the same key: known, nothing new to learn, and yet no more what the catalog has of it."""
    stream = in_our_inbox("came-back-whole", backbone, tmp_path)
    s3, where = storage.s3(), {"Bucket": settings().inbox_bucket, "Key": f"{stream.name}/01.parquet"}
    whole = s3.get_object(**where)["Body"].read()
    forget(open_ticket(stream, "person-3").ticket_id)
    s3.put_object(**where, Body=whole)
    learn(stream)
    assert batches.discover.fn(stream) == []
    with database.transaction() as session:
        assert [(batch.rows, batch.suppressed) for batch in catalog.batches(session, stream.name)] == [(60, 6)]
    for subject in ("person-4", "person-3"):  # the first one leaves a single version of the object
        forget(open_ticket(stream, subject).ticket_id)
    assert not whose(f"{stream.name}/") & {"person-3", "person-4"}


def test_two_streams_that_read_one_object_are_erased_one_after_the_other(backbone, tmp_path):
    """The second one does not take what the first one rewrote for a new batch, and the first one's exception names no
    record of the second: else it could never become complete."""
    stream = in_our_inbox("read-twice", backbone, tmp_path)
    other = make_stream("read-twice-too", backbone, tmp_path, source=stream.source)
    learn(other)
    first = open_ticket(stream, "person-3")
    assert f"the same was learned by {other.name}: erase there first" in forget(first.ticket_id).note
    assert certificate_of(first.ticket_id)["sweep"]["found_in"] == []
    assert batches.discover.fn(other) == []
    second = open_ticket(other, "person-3")
    forget(second.ticket_id)
    assert_complete(second.ticket_id)
    opening.reopen_ticket(first.ticket_id, "ann", "it was erased there too")
    forget(first.ticket_id)
    assert_complete(first.ticket_id)
