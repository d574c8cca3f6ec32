"""Tickets among themselves and against all else that happens to a stream: together, in between, refused, again."""

import json
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from mlflow.entities import ViewType

from flows import forget as saga
from infra import database, keys, storage, tracking
from infra.errors import HeldError
from infra.settings import settings
from registry import adapters as adapter_rows
from registry import artifacts, catalog, contents, ownership, tickets, versions
from registry.errors import CertificateError, StaleEpochError, StateError, SuppressedRecordError, TamperedLogError
from registry.records import AdapterState, BatchState, TicketState, VersionState
from registry.sections import Approval, Approvals, Gates
from registry.tables import TicketEventRow
from registry.versions import CHAMPION
from tasks import (
    adapters,
    auditing,
    batches,
    blobs,
    consolidation,
    exclusion,
    manifests,
    markers,
    queries,
    registration,
    suppression_journal,
)
from tasks import tickets as opening
from tasks.alias_moves import move_alias, rollback_target
from tasks.approvals import waiting
from tasks.assembly import current_manifest
from tasks.certificates import verify, verify_chain
from tasks.closing import unfinished_before
from tasks.held_back import held_file
from tasks.identity import catalog_key, keyed_hash
from tasks.markers import escrow
from tasks.opening import certificate_path
from tasks.rows import Row
from tasks.shards import load_rows
from tests.flows.adversary import (
    assert_complete,
    certificate_of,
    champion_of,
    forget,
    in_the_middle_of,
    learn,
    learn_batch,
    learned_stream,
    of_inbox,
    open_ticket,
    put_in_inbox,
    ready_versions,
    serve_all,
    state_of,
)
from tests.flows.conftest import deliver, make_stream
from tests.flows.server import until

pytestmark = pytest.mark.usefixtures("ready", "plain_steps")


@pytest.fixture(scope="module")
def stream(ready, backbone, tmp_path_factory):  # noqa: ARG001
    return learned_stream("tickets", backbone, tmp_path_factory.mktemp("tickets"), subjects=60)


@pytest.fixture
def needs_approval(stream):
    approval = stream.gates.approval.model_copy(update={"erasure": Approval.ALWAYS})
    asking = stream.model_copy(update={"gates": stream.gates.model_copy(update={"approval": approval})})
    with database.transaction() as session:
        digest = catalog.backbone_digest(session, stream.name)
        catalog.save_stream(session, asking, digest)
    yield
    with database.transaction() as session:
        catalog.save_stream(session, stream, digest)


NAMED = {
    "record": [("record", [], ["7"]), ("subject", ["ann"], []), ("other", ["bo"], ["8"])],
    "subject": [("subject", ["ann"], []), ("record", [], ["7"]), ("other", ["bo"], ["8"])],
}
"""What is named by tickets one after the other."""

LOCKS = {
    "hold": {"ObjectLockLegalHoldStatus": "ON"},
    "retention": {
        "ObjectLockMode": "GOVERNANCE",
        "ObjectLockRetainUntilDate": datetime(2099, 3, 1, 12, tzinfo=UTC),
    },
}


@pytest.fixture(params=["hold", pytest.param("retention", marks=pytest.mark.services)])
def locked(stream, set_variable, request):
    """The first batch's source object lies in an inbox bucket of ours and is locked; (kind, bucket, key, version)."""
    s3, key, held = storage.s3(), f"{stream.name}/01.parquet", f"inbox-under-{request.param}"
    s3.create_bucket(Bucket=held, ObjectLockEnabledForBucket=True)
    data = s3.get_object(Bucket=settings().inbox_bucket, Key=key)["Body"].read()
    s3.put_object(Bucket=held, Key=key, Body=data, **LOCKS[request.param])
    version = s3.head_object(Bucket=held, Key=key)["VersionId"]
    uri = move_first_batch(stream, f"s3://{held}/{key}")
    set_variable("INBOX_BUCKET", held)
    yield request.param, held, key, version
    if version in [each.version_id for each in artifacts.list_versions(s3, held, key)]:
        unlock(request.param, held, key, version)
    artifacts.purge_keys(s3, held, [key])  # no inbox of ours any more: its rows would be found on the disk
    move_first_batch(stream, uri)


def unlock(kind: str, bucket: str, key: str, version: str) -> None:
    where = {"Bucket": bucket, "Key": key, "VersionId": version}
    if kind == "hold":
        storage.s3().put_object_legal_hold(**where, LegalHold={"Status": "OFF"})
    else:  # whoever set it may shorten it, though not into the past; in compliance mode nobody could
        end = datetime.now(UTC) + timedelta(seconds=2)
        sooner = {"Mode": "GOVERNANCE", "RetainUntilDate": end}
        storage.s3().put_object_retention(**where, Retention=sooner, BypassGovernanceRetention=True)
        until(lambda: datetime.now(UTC) > end)


def move_first_batch(stream, uri: str) -> str:
    """Have the batch come from elsewhere; returns where it came from."""
    with database.transaction() as session:
        batch = next(b for b in catalog.batches(session, stream.name) if b.name == "01")
        session.execute(
            database.text("update batch set uri = :uri where batch_id = :id"), {"uri": uri, "id": batch.batch_id}
        )
    return batch.uri


def every_run(stream) -> set[str]:
    client = tracking.prepare_tracking()
    found = client.search_runs([tracking.experiment(client, stream.name)], run_view_type=ViewType.ALL)
    return {run.info.run_id for run in found}


def test_open_tickets_are_worked_as_one_batch_with_a_certificate_each(stream):
    first, second = open_ticket(stream, "person-1"), open_ticket(stream, "person-2", "person-3")
    forget(second.ticket_id)
    for ticket, records in ((first, 4), (second, 8)):
        assert_complete(ticket.ticket_id)
        content = certificate_of(ticket.ticket_id)
        assert (content["records"], content["worked_together"], content["guarantee"]) == (records, 2, "E0")
        assert content["sweep"]["markers"] == 3 * records
        assert (content["monitors"]["alarms"], content["monitors"]["before"].keys() >= {"loss", "rmia"}) == ([], True)
        assert 0 < content["monitors"]["rmia"]["forgotten"] <= records
        traces = [found["trace"] for found in content["comparison"].values() if found.get("trace")]
        assert traces
        assert all(trace == {"share": 0.0, "z": 0.0} for trace in traces)
        assert not held_file(ticket.ticket_id).exists()
        assert [each["what"] for each in content["history"]] == ["received", "approved", "in_progress"]
    assert certificate_of(first.ticket_id)["closure"] == certificate_of(second.ticket_id)["closure"]
    with database.transaction() as session:
        log = tickets.certificates(session)
        assert len([row for row in tickets.steps_of(session, second.ticket_id) if row.step == "rebuild"]) == 1
    assert forget(first.ticket_id).state == TicketState.COMPLETE
    with database.transaction() as session:
        assert tickets.certificates(session) == log


def test_a_ticket_that_comes_in_between_is_worked_next(stream, monkeypatch):
    late = []
    in_the_middle_of(monkeypatch, saga, "rebuild", lambda: late.append(open_ticket(stream, "person-5")))
    early = open_ticket(stream, "person-4")
    forget(early.ticket_id)
    for ticket in (early, *late):
        assert_complete(ticket.ticket_id)
        assert certificate_of(ticket.ticket_id)["worked_together"] == 1
    assert champion_of(stream) is not None


@pytest.mark.usefixtures("needs_approval")
def test_nothing_tainted_serves_from_the_moment_of_approval(stream, monkeypatch):
    before = champion_of(stream)
    ticket = open_ticket(stream, "person-6")
    assert champion_of(stream) == before  # received, not in effect
    with pytest.raises(StateError, match="ticket approve"):
        forget(ticket.ticket_id)
    assert opening.verify_ticket(ticket.ticket_id, "ann").state == TicketState.VERIFIED
    opening.approve_ticket(ticket.ticket_id, "bo", "looked at it")
    assert champion_of(stream) is None  # withdrawn by the approval itself, before any step runs
    meanwhile = []
    in_the_middle_of(monkeypatch, saga, "rebuild", lambda: meanwhile.append(champion_of(stream)))
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    (interim,) = meanwhile
    with database.transaction() as session:
        found = versions.get_version(session, stream.name, interim)
    assert (found.accuracy, found.reason) == (None, "serves while what a ticket reached is rebuilt")
    who = [(each["what"], each["by"]) for each in certificate_of(ticket.ticket_id)["history"]]
    assert who[:3] == [("received", "test"), ("verified", "ann"), ("approved", "bo")]


@pytest.mark.usefixtures("needs_approval")
def test_a_denied_ticket_is_not_worked(stream):
    before = champion_of(stream)
    ticket = open_ticket(stream, "person-7")
    opening.deny_ticket(ticket.ticket_id, "ann", "identity was not shown")
    with pytest.raises(StateError, match="identity was not shown"):
        forget(ticket.ticket_id)
    assert champion_of(stream) == before


@pytest.mark.usefixtures("needs_approval")
def test_nobody_is_asked_about_a_ticket_that_took_effect_before_a_restored_catalog_knew(stream):
    ticket = open_ticket(stream, "person-27")
    assert [r.what for r in waiting(stream.name)] == [ticket.ticket_id]
    with database.transaction() as session:
        suppression_journal.note(ticket, tickets.targets_of(session, ticket.ticket_id))
        assert opening.replay(session, stream.name, "restore") == [ticket.ticket_id]
    assert waiting(stream.name) == []
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)


def test_what_a_store_refuses_makes_an_exception_until_it_is_lifted(stream, locked):
    """A version of a source object under a lock. The ticket says so; afterwards it is reopened and completes."""
    kind, *where = locked
    ticket = open_ticket(stream, {"hold": "person-8", "retention": "person-16"}[kind])
    closed = forget(ticket.ticket_id)
    assert closed.state == TicketState.EXCEPTION
    assert "was kept" in closed.note
    assert f"deciduous ticket reopen {ticket.ticket_id}" in closed.note
    assert certificate_of(ticket.ticket_id)["guarantee"] == "Q"
    (refused,) = certificate_of(ticket.ticket_id)["purge"]["refused"]
    assert {"hold": "its legal hold", "retention": "its retention, 2099-03-01 12:00 UTC"}[kind] in refused
    assert champion_of(stream) is not None
    assert forget(ticket.ticket_id).state == TicketState.EXCEPTION  # a second delivery changes nothing

    unlock(kind, *where)
    opening.reopen_ticket(ticket.ticket_id, "ann", "it was lifted")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    assert auditing.audit()["certificates"] == len(list(Path(certificate_path("x")).parent.glob("*.json")))
    chain = verify_chain(file.read_bytes() for file in Path(certificate_path("x")).parent.glob("*.json"))
    assert [c["guarantee"] for c in chain if c["ticket"] == ticket.ticket_id] == ["Q", "E0"]


def test_an_exception_is_worked_again_after_the_ticket_that_led_it_completed(stream, monkeypatch, tmp_path):
    """The markers of one of two tickets are out of reach while both are worked."""
    done, left = open_ticket(stream, "person-40"), open_ticket(stream, "person-41")
    markers, elsewhere = escrow(left.ticket_id), tmp_path / "markers"
    in_the_middle_of(monkeypatch, saga, "rebuild", lambda: markers.rename(elsewhere))
    forget(done.ticket_id)
    assert_complete(done.ticket_id)
    assert "no marker" in state_of(left.ticket_id).note
    certified = certificate_of(done.ticket_id)
    elsewhere.rename(markers)
    opening.reopen_ticket(left.ticket_id, "ann", "the markers are back")
    forget(left.ticket_id)
    assert_complete(left.ticket_id)
    content = certificate_of(left.ticket_id)
    assert (content["records"], content["closure"], content["guarantee"]) == (4, certified["closure"], "E0")
    assert certificate_of(done.ticket_id) == certified


def test_a_second_ticket_for_the_same_is_no_more_complete_than_the_first(stream, monkeypatch, tmp_path):
    """The first is an exception, its rows are gone: the second finds no record, and nothing to rebuild."""
    first, second = open_ticket(stream, "person-19"), []
    markers, elsewhere = escrow(first.ticket_id), tmp_path / "markers"

    def meanwhile():
        markers.rename(elsewhere)
        second.append(open_ticket(stream, "person-19").ticket_id)

    in_the_middle_of(monkeypatch, saga, "compare", meanwhile)
    forget(first.ticket_id)
    assert state_of(first.ticket_id).note.startswith("no marker of the records was there to look for; then:")
    assert state_of(*second).note.startswith(f"ticket {first.ticket_id}, which names the same, is not complete")
    assert (certificate_of(*second)["guarantee"], certificate_of(*second)["records"]) == ("none", 0)
    elsewhere.rename(markers)
    for ticket_id in (first.ticket_id, *second):
        opening.reopen_ticket(ticket_id, "ann", "the markers are back")
        forget(ticket_id)
        assert_complete(ticket_id)


@pytest.mark.parametrize("first", ["record", "subject"])
def test_a_record_and_its_subject_are_the_same_to_a_later_ticket(backbone, inbox, monkeypatch, first):
    """The rows went with the first ticket, which is not complete: what tells is what it holds to look for them."""
    stream = make_stream(f"names-a-{first}", backbone, inbox)
    with database.transaction() as session:
        catalog.save_stream(session, stream, "digest")
    hashes = {kind: keyed_hash(kind, stream.name, name) for kind, name in (("record", "7"), ("subject", "ann"))}
    row = Row(**hashes, group="", label="red", input=b"a b c", time=None, held_out=False, slice=0)
    monkeypatch.setattr(markers, "load_rows", lambda _: [row])
    monkeypatch.setattr(markers, "states_of", lambda *_: [torch.zeros(1, 8)])
    opened = {kind: open_ticket(stream, *names, records=ids) for kind, names, ids in NAMED[first]}
    markers.keep_markers(stream, opened[first].ticket_id, [None], [catalog_key(row.record)])
    with database.transaction() as session:
        told = {kind: unfinished_before(session, ticket, [ticket]) for kind, ticket in opened.items()}
    same = f"ticket {opened[first].ticket_id}, which names the same, is not complete: finish it first"
    assert told == {"record": [same], "subject": [same], "other": [], first: []}


def test_a_ticket_makes_nothing_champion_that_waits_for_a_person(backbone, tmp_path):
    """The champion is older than what the tickets reach."""
    asks = Gates(accuracy_drop=0.5, forgetting=0.5, approval=Approvals(promotion="always"))
    stream = make_stream("waits-on", backbone, tmp_path, source=of_inbox("waits-on"), gates=asks)
    for name, topics in (("01", ["red", "blue"]), ("02", ["green", "gold"])):
        rows = deliver(tmp_path, name, topics)
        put_in_inbox(stream.name, name, [{**row, "who": f"{name}-{row['who']}"} for row in rows])
    learn(stream)
    move_alias(stream.name, CHAMPION, 1, "ann", "reviewed")
    forget(open_ticket(stream, "nobody").ticket_id)
    assert (champion_of(stream), ready_versions(stream)) == (1, [1, 2])
    reached = open_ticket(stream, "02-person-3").ticket_id
    forget(reached)
    assert_complete(reached)
    assert (champion_of(stream), ready_versions(stream)) == (1, [1, 3])
    assert [r.what for r in waiting(stream.name)] == ["waits-on/3"], "the others are overtaken or withdrawn"
    forget(open_ticket(stream, "01-person-3").ticket_id)
    assert champion_of(stream) == ready_versions(stream)[-1], "the one before was withdrawn"


def test_a_ticket_does_not_choose_the_first_champion_in_a_persons_place(backbone, tmp_path):
    """It stands in for nothing: no version has served yet."""
    asks = Gates(accuracy_drop=0.5, forgetting=0.5, approval=Approvals(promotion="always"))
    stream = make_stream("none-yet", backbone, tmp_path, source=of_inbox("none-yet"), gates=asks)
    put_in_inbox(stream.name, "01", deliver(tmp_path, "01", ["red", "blue"]))
    learn(stream)
    ticket_id = open_ticket(stream, "person-3").ticket_id
    forget(ticket_id)
    assert_complete(ticket_id)
    assert (champion_of(stream), ready_versions(stream)) == (None, [2])
    assert [r.what for r in waiting(stream.name)] == ["none-yet/2"]


def test_training_that_began_before_a_ticket_is_refused(stream, monkeypatch):
    with database.transaction() as session:
        shard = contents.done_shards(session, stream.name)[0]
        before = ownership.all_keys(session, blobs.stream_prefix(stream.name))
    opened = []
    in_the_middle_of(monkeypatch, adapters, "train", lambda: opened.append(open_ticket(stream, "person-9")))
    with pytest.raises(StaleEpochError, match="a ticket came in between"):
        adapters.train_adapter.fn(stream, shard, f"{stream.name}-a77")
    with database.transaction() as session:
        assert ownership.objects_of(session, [f"adapter:{stream.name}-a77"]) == []
        assert ownership.all_keys(session, blobs.stream_prefix(stream.name)) == before
    with pytest.raises(SuppressedRecordError, match="finish the open tickets"):
        adapters.train_adapter.fn(stream, shard, f"{stream.name}-a77")
    forget(opened[0].ticket_id)
    assert_complete(opened[0].ticket_id)


def test_a_merge_that_began_before_a_ticket_is_refused(stream, monkeypatch):
    with database.transaction() as session:
        parents = [a.adapter_id for a in adapter_rows.adapters(session, stream.name) if not a.parent_ids][:2]
        for parent in parents:  # their heir serves: by themselves they are merged no more
            adapter_rows.move_adapter(session, parent, AdapterState.CANDIDATE, "for this test")
    opened = []
    in_the_middle_of(
        monkeypatch, consolidation, "merged_weights", lambda: opened.append(open_ticket(stream, "person-10"))
    )
    with pytest.raises(StaleEpochError, match="a ticket came in between; nothing was registered, run again"):
        consolidation.merge_adapters.fn(stream, tuple(parents))
    with pytest.raises(SuppressedRecordError, match=r"finish the open tickets of stream .* first, then run again"):
        consolidation.merge_adapters.fn(stream, tuple(parents))
    forget(opened[0].ticket_id)
    assert_complete(opened[0].ticket_id)
    with pytest.raises(StaleEpochError, match="started at deletion epoch"):
        registration.register_change.fn(stream, "merge:late", "began before the ticket", epoch=0)


def test_a_batch_that_was_being_read_as_a_ticket_came_is_read_again(stream, monkeypatch, inbox):
    put_in_inbox(
        stream.name, "03", [{**row, "who": "person-11"} for row in deliver(inbox, "03", ["red", "blue"], rows=8)]
    )
    (uri, tag) = batches.discover.fn(stream)[0]
    opened = []
    in_the_middle_of(monkeypatch, batches, "_enter", lambda: opened.append(open_ticket(stream, "person-11")))
    with pytest.raises(StaleEpochError, match="03"):
        batches.read_batch.fn(stream, uri, tag)
    assert batches.read_batch.fn(stream, uri, tag) is None  # its every row is suppressed by now
    assert (uri, tag) not in batches.discover.fn(stream)
    storage.s3().delete_object(Bucket=settings().inbox_bucket, Key=f"{stream.name}/03.parquet")
    forget(opened[0].ticket_id)
    assert_complete(opened[0].ticket_id)


def test_a_text_of_somebody_who_stays_is_no_trace_while_their_batch_is_held(stream, inbox):
    leaving = keyed_hash("subject", stream.name, "person-58")
    with database.transaction() as session:
        shards = contents.done_shards(session, stream.name)
    text = next(row.input for shard in shards for row in load_rows(shard) if row.subject == leaving).decode()
    put_in_inbox(stream.name, "04", [{**row, "words": text} for row in deliver(inbox, "04", ["red"], rows=1)])
    ((uri, tag),) = batches.discover.fn(stream)
    batch = batches.read_batch.fn(stream, uri, tag)
    batches.hold_batch.fn(stream, batch, "for this test")
    ticket = open_ticket(stream, "person-58")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)


def test_neither_text_nor_states_of_somebody_who_stays_are_a_trace(backbone, tmp_path):
    stream = make_stream("twins-stay", backbone, tmp_path, source=of_inbox("twins-stay"))
    rows = deliver(tmp_path, "01", ["red", "blue"], rows=60)
    rows[5]["words"] = "a b"  # too short to be looked for; its states are not
    same = [{**rows[n], "key": f"twin-{n}", "who": "stays"} for n in (3, 5)]
    quoted = {**rows[7], "key": "quote", "who": "stays", "words": f"z z {rows[7]['words']}"}
    loud = {**rows[9], "key": "loud", "who": "stays", "words": f"  {rows[9]['words'].upper()}"}
    put_in_inbox(stream.name, "01", [*rows, *same, quoted, loud])
    learn(stream)
    ticket = open_ticket(stream, records=["01-3", "01-5", "01-7", "01-9"])
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    swept = certificate_of(ticket.ticket_id)["sweep"]
    # looked for: states of what is only quoted, the window of what is written otherwise; not: two windows, three states
    assert (swept["markers"], swept["shared"]) == (2, 5)


def test_the_stream_is_held_against_learning_and_merging(stream):
    with exclusion.alone(stream.name), pytest.raises(HeldError, match=stream.name), exclusion.alone(stream.name, 0):
        pass


def test_who_waits_for_another_is_told_for_whom(stream, caplog):
    caplog.set_level("INFO", logger="deciduous")
    with exclusion.alone(stream.name), pytest.raises(HeldError), exclusion.alone(stream.name, 0.1):
        pass
    assert f"stream {stream.name} is being worked on by " in caplog.text
    assert "waiting for it" in caplog.text


def test_a_run_that_a_crash_left_between_mlflow_and_the_catalog_is_purged(stream, monkeypatch):
    serving = current_manifest(stream)
    with monkeypatch.context() as patch:
        patch.setattr(versions, "add_version", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            registration.register_change.fn(stream, "merge:left-behind", "cut off", serving["epoch"])
    with database.transaction() as session:
        named = {v.run_id for v in versions.versions(session, stream.name)}
    (orphan,) = every_run(stream) - named
    ticket = open_ticket(stream, "person-12")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    assert orphan not in every_run(stream)
    assert artifacts.list_versions(storage.s3(), settings().artifact_bucket, f"mlflow/{orphan}") == []


def test_an_upload_that_never_ended_goes(stream):
    where = {"Bucket": settings().artifact_bucket, "Key": f"{blobs.stream_prefix(stream.name)}left/over"}
    storage.s3().create_multipart_upload(**where)
    forget(open_ticket(stream, "person-13").ticket_id)
    assert artifacts.list_uploads(storage.s3(), where["Bucket"], blobs.stream_prefix(stream.name)) == []


def test_after_a_rotation_of_the_key_old_records_are_found_and_stay_forgotten(stream, inbox):
    gone = open_ticket(stream, "person-14")
    forget(gone.ticket_id)
    retired = keys.rotate_hash_key()
    assert retired.exists()
    ticket = open_ticket(stream, "person-15", records=["01-16"])
    assert ticket.records == 5  # hashed under the retired key
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    rows = deliver(inbox, "04", ["red", "blue"], rows=60, first=500)
    names = ["person-14", "person-15", "newcomer"]
    again = [{**row, "who": names[n % 3]} for n, row in enumerate(rows)] + [
        {**rows[0], "key": "01-17", "who": "newcomer"}
    ]
    put_in_inbox(stream.name, "04", again)
    (uri, tag) = batches.discover.fn(stream)[0]
    batch = batches.read_batch.fn(stream, uri, tag)
    assert (batch.rows, batch.suppressed, batch.quarantined) == (20, 40, 1)
    learn_batch(stream, batch)
    new = open_ticket(stream, "newcomer")
    assert new.records == 20
    forget(new.ticket_id)
    assert_complete(new.ticket_id)


def test_a_stream_that_a_ticket_empties_goes_on_with_new_numbers(backbone, tmp_path, inbox):
    stream = learned_stream("emptied", backbone, tmp_path, subjects=10, merged=False)
    serve_all(stream)
    few = open_ticket(stream, *(f"person-{n}" for n in range(9)))
    forget(few.ticket_id)  # too few rows are left to fit an adapter on
    assert_complete(few.ticket_id)
    with database.transaction() as session:
        states = {a.state for a in adapter_rows.adapters(session, stream.name)}
    last = open_ticket(stream, "person-9")
    forget(last.ticket_id)
    assert_complete(last.ticket_id)
    assert champion_of(stream) is None
    with database.transaction() as session:
        used = [v.version for v in versions.versions(session, stream.name)]
        assert {v.state.value for v in versions.versions(session, stream.name)} == {"erased"}
        assert {a.state for a in adapter_rows.adapters(session, stream.name)} == {AdapterState.ERASED}
    assert states <= {AdapterState.ERASED, AdapterState.SERVING}
    put_in_inbox(
        stream.name,
        "05",
        [{**r, "who": f"new-{n}"} for n, r in enumerate(deliver(inbox, "05", ["red", "blue"], rows=60))],
    )
    learn(stream)
    assert champion_of(stream) == max(used) + 1


def test_a_batch_that_a_ticket_empties_before_it_is_learned_does_not_hold_up_the_stream(stream, inbox):
    put_in_inbox(stream.name, "04", [{**row, "who": "a passer-by"} for row in deliver(inbox, "04", ["red"], rows=8)])
    (uri, tag) = batches.discover.fn(stream)[0]
    batch = batches.read_batch.fn(stream, uri, tag)
    ticket = open_ticket(stream, "a passer-by")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    assert batches.unfinished_batches.fn(stream) == []
    with database.transaction() as session:
        assert catalog.get_batch(session, batch.batch_id).state == BatchState.DONE


def test_a_held_batch_that_a_ticket_empties_waits_for_nobody(stream, inbox):
    put_in_inbox(stream.name, "05", [{**row, "who": "held alone"} for row in deliver(inbox, "05", ["red"], rows=1)])
    (uri, tag) = batches.discover.fn(stream)[0]
    batch = batches.read_batch.fn(stream, uri, tag)
    batches.hold_batch.fn(stream, batch, "one row")
    ticket = open_ticket(stream, "held alone")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    told = queries.describe(batch.batch_id)
    assert (told["state"], told["rows"], told["delivered"]) == (BatchState.DONE, 0, 1)
    assert told["reason"] == "a ticket took its every row"


@contextmanager
def second_entry_by(somebody: str):
    """The second entry of the ticket log names somebody else meanwhile."""

    def change(by: str) -> str:
        with database.transaction() as session:
            row = session.get_one(TicketEventRow, 2)
            row.by, was = by, row.by
        return was

    was = change(somebody)
    try:
        yield
    finally:
        change(was)


def test_certificates_that_are_taken_out_or_put_in_show(stream):
    opened = [open_ticket(stream, f"person-{number}") for number in (50, 51, 52)]
    forget(opened[0].ticket_id)
    whole = [file.read_bytes() for file in Path(certificate_path("x")).parent.glob("*.json")]
    chain = verify_chain(whole)
    assert len(chain) == auditing.audit()["certificates"] >= 3
    assert {each["ticket"] for each in chain} >= {ticket.ticket_id for ticket in opened}
    with pytest.raises(CertificateError, match="breaks after 1 certificates"):
        verify_chain(each for each in whole if verify(each) != chain[1])
    with pytest.raises(CertificateError, match="two certificates follow the same one"):
        verify_chain([*whole, whole[0]])


def test_tampering_with_the_log_shows(stream):
    forget(open_ticket(stream, "person-53").ticket_id)
    entries = auditing.audit()["log_entries"]
    assert entries > 2
    with second_entry_by("mallory"), pytest.raises(TamperedLogError, match="entry 2"):
        auditing.audit()
    assert auditing.audit()["log_entries"] == entries


def test_what_a_ticket_leaves_alone_serves_before_the_stream_is_free(backbone, tmp_path):
    """The first batch is reached, the second is not; the stream is held by somebody else."""
    stream = make_stream("stands-in", backbone, tmp_path)
    for name, topics in (("01", ["red", "blue"]), ("02", ["green", "gold"])):
        rows = [{**row, "who": f"{name}-{row['who']}"} for row in deliver(tmp_path, name, topics, rows=60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learn(stream)
    serve_all(stream)
    with database.transaction() as session:
        first, second = (shard.shard_id for shard in contents.done_shards(session, stream.name))
    ticket = open_ticket(stream, "01-person-1")
    assert champion_of(stream) is None
    registration.stand_in.fn(stream, ticket.ticket_id)
    interim = champion_of(stream)
    registration.serve_meanwhile.fn(stream, [ticket])
    assert registration.serve_meanwhile.fn(stream, [ticket]) is None, "it serves already"
    manifest = manifests.load_manifest(stream.name, interim)
    assert [shard["shard_id"] for shard in manifest["shards"]] == [second]
    assert [a["statistics"][0]["shard_id"] for a in manifest["adapters"]] == [second]
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    with database.transaction() as session:
        found = {v.version: v for v in versions.versions(session, stream.name)}
    assert found[interim].state == VersionState.READY
    last = manifests.load_manifest(stream.name, champion_of(stream))
    assert [shard["shard_id"] for shard in last["shards"]] == [first, second]
    with pytest.raises(StateError, match="no previous champion"):  # what stood in is no version to go back to
        rollback_target(stream.name, None)
