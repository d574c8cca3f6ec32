"""The most adversarial tests of the tree: what a deletion reaches, and that nothing else moves."""

import json
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase

import pyarrow as pa
import pyarrow.parquet
import pytest

from flows.consolidate import consolidate
from flows.forget import forget
from flows.learn import learn
from infra import database, storage
from infra.settings import settings
from registry import adapters, artifacts, contents, versions
from registry.errors import StaleEpochError, SuppressedRecordError
from registry.records import AdapterState, TicketState
from registry.versions import CHAMPION
from tasks import blobs, queries, tickets
from tasks.assembly import current_manifest
from tasks.certificates import verify
from tasks.forgetting import make_plan
from tasks.manifests import load_manifest
from tasks.opening import certificate_path
from tasks.rebuilding import LEFT
from tasks.release import check_release, tainted_shards
from tasks.serving import Answerer
from tests.flows import adversary
from tests.flows.conftest import deliver, make_stream

pytestmark = pytest.mark.usefixtures("ready")


def open_ticket(stream, *subjects: str):
    return tickets.open_ticket(stream.name, tickets.resolve_targets(stream.name, subjects, []), "test")


def weights_of(adapter_id: str) -> str:
    return blobs.get(f"adapter:{adapter_id}", "weights").sha256


def put_in_inbox(stream_name: str, name: str, rows: list[dict]) -> None:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pylist(rows), sink)
    storage.s3().put_object(
        Bucket=settings().inbox_bucket, Key=f"{stream_name}/{name}.parquet", Body=sink.getvalue().to_pybytes()
    )


@pytest.fixture
def learned(backbone, inbox, request):
    """A stream with two batches in the inbox bucket, learned."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40]
    source = f"s3://{settings().inbox_bucket}/{name}/*.parquet"
    stream = make_stream(name, backbone, inbox, source=source)
    put_in_inbox(name, "01", deliver(inbox, "01", ["red", "blue"], rows=60))
    put_in_inbox(name, "02", deliver(inbox, "02", ["green", "gold"], rows=60))
    learn(stream)
    return stream


def test_a_ticket_ends_in_a_certificate_and_leaves_no_byte(learned):
    ticket = open_ticket(learned, "person-3")
    assert ticket.records == 12
    closed = forget(ticket.ticket_id)
    assert closed.state == TicketState.COMPLETE

    certificate = verify(Path(certificate_path(ticket.ticket_id)).read_bytes())
    assert (certificate["guarantee"], certificate["records"]) == ("E0", 12)
    assert certificate["sweep"]["hits"] == 0
    assert certificate["sweep"]["markers"] == 36
    assert sorted(node.split(":")[0] for node in certificate["comparison"]) == ["adapter"] * 2 + ["shard"] * 2
    assert b"person-3" not in Path(certificate_path(ticket.ticket_id)).read_bytes()
    for bucket in (settings().artifact_bucket, settings().inbox_bucket):
        assert artifacts.sweep_bytes(storage.s3(), bucket, [b"person-3"], f"{learned.name}/") == []


@pytest.fixture
def two_groups(backbone, inbox):
    """A stream whose second batch belongs to another group and to other subjects; both adapters serve."""
    stream = make_stream("closure-only", backbone, inbox)
    stream = stream.model_copy(update={"columns": stream.columns.model_copy(update={"group": "team"})})
    for name, team, topics in (("01", "a", ["red", "blue"]), ("02", "b", ["green", "gold"])):
        rows = deliver(inbox, name, topics, rows=60)
        lines = [json.dumps({**row, "who": f"{team}-{n % 10}", "team": team}) for n, row in enumerate(rows)]
        (inbox / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    adversary.learn(stream)
    adversary.serve_all(stream)
    return stream


def answers_to(group: str, manifest) -> tuple[list[str], bytes, set[str | None]]:
    """Labels, the bytes of all scores, and the adapters that answered."""
    told = Answerer(manifest).answer([f"{a} {b} {a} {b}".encode() for a, b in pairwise(ascii_lowercase)], [group])
    return told.labels, told.scores_NC.numpy().tobytes(), set(told.adapter_ids)


@pytest.mark.usefixtures("plain_steps")
def test_only_the_closure_changes(two_groups):
    """Weights and answers. Until the second group's adapter is rebuilt, the version before it serves."""
    first, second = (row["adapter_id"] for row in queries.listing("adapters", two_groups.name))
    weights, served = (weights_of(first), weights_of(second)), current_manifest(two_groups)
    before = {group: answers_to(group, served) for group in "ab"}
    ticket = open_ticket(two_groups, "b-4")
    assert adversary.champion_of(two_groups) == 1
    adversary.assert_nothing_tainted_serves(two_groups)
    adversary.forget(ticket.ticket_id)
    assert weights_of(first) == weights[0]
    assert weights_of(second) != weights[1]
    after = load_manifest(two_groups.name, adversary.champion_of(two_groups))
    assert answers_to("a", after) == before["a"]
    assert answers_to("b", after)[1] != before["b"][1]
    assert first in before["a"][2]  # its weights took part
    assert second in before["b"][2]


def test_a_ticket_for_nobody_changes_nothing(learned):
    before = current_manifest(learned)
    closed = forget(open_ticket(learned, "nobody").ticket_id)
    assert (closed.state, closed.records) == (TicketState.COMPLETE, 0)
    assert adversary.certificate_of(closed.ticket_id)["scope"].startswith(
        "The ticket names no record that was in the catalog"
    )
    after = current_manifest(learned)
    assert {**after, "epoch": 0} == {**before, "epoch": 0}


def test_the_release_gate_refuses_what_a_suppressed_record_shaped(learned):
    champion = load_manifest(learned.name, queries.status(learned.name)[0]["champion"])
    open_ticket(learned, "person-5")
    with database.transaction() as session:
        with pytest.raises(StaleEpochError, match="deletion epoch"):
            check_release(session, champion, "the champion")
        with pytest.raises(SuppressedRecordError, match="finish the open tickets"):
            check_release(session, {**champion, "epoch": 1}, "the champion")
        assert len(tainted_shards(session, learned.name)) == 2


def test_a_forgotten_subject_does_not_come_back(learned, inbox):
    forget(open_ticket(learned, "person-1").ticket_id)
    put_in_inbox(learned.name, "03", deliver(inbox, "01", ["red", "blue"], rows=60, first=200))
    learn(learned)
    batch = queries.listing("batches", learned.name)[-1]
    assert (batch["rows"], batch["suppressed"]) == (54, 6)
    assert len(queries.listing("batches", learned.name)) == 3


def test_a_merge_is_replayed_from_clean_parents(learned):
    with database.transaction() as session:
        for adapter in adapters.adapters(session, learned.name):
            adapters.move_adapter(session, adapter.adapter_id, AdapterState.SERVING, "for this test")
    outcome = consolidate(learned)
    assert outcome is not None
    assert outcome.accepted, outcome.reason
    merged = outcome.adapter_id
    before = weights_of(merged)
    targets = tickets.resolve_targets(learned.name, ["person-7"], [])
    plan, _ = make_plan(learned.name, targets)
    assert [r.action for r in plan.repairs] == ["retrain", "retrain", "replay"]
    closed = forget(tickets.open_ticket(learned.name, targets, "test").ticket_id)
    assert closed.state == TicketState.COMPLETE
    assert weights_of(merged) != before


def test_a_repeated_run_of_a_closed_ticket_changes_nothing(learned):
    ticket = open_ticket(learned, "person-2")
    forget(ticket.ticket_id)
    before = current_manifest(learned)
    assert forget(ticket.ticket_id).state == TicketState.COMPLETE
    assert current_manifest(learned) == before


def test_tainted_versions_are_gone_and_the_champion_is_clean(learned):
    forget(open_ticket(learned, "person-6").ticket_id)
    with database.transaction() as session:
        states = [v.state.value for v in versions.versions(session, learned.name)]
        champion = versions.alias_of(session, learned.name, CHAMPION)
        assert tainted_shards(session, learned.name) == set()
        assert len(contents.done_shards(session, learned.name)) == 2
    assert states == ["erased", "erased", "ready", "ready"]  # the third served while the fourth was made
    assert champion == 4
    assert [(b["rows"], b["delivered"]) for b in queries.listing("batches", learned.name)] == [(54, 60), (54, 60)]
    reasons = [adapter["reason"] for adapter in queries.listing("adapters", learned.name)]
    assert [reason.count(LEFT) for reason in reasons] == [1, 1]
