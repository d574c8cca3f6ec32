"""What is left between two steps of a deletion, or of learning as a ticket comes, and how each goes on."""

import pytest

from flows import forget as saga
from infra import database
from infra.settings import settings
from registry import adapters as adapter_rows
from registry import contents, decision_log, ownership
from registry.errors import SuppressedRecordError
from registry.records import AdapterState, Decision, DecisionKind
from tasks import (
    adapters,
    batches,
    consolidation,
    decisions,
    manifests,
    rebuilding,
    registration,
    retirement,
    shift,
)
from tasks import tickets as opening
from tasks.forms import load_weights
from tasks.markers import escrow
from tasks.rows import held_out, trainable
from tasks.shards import load_rows
from tests.flows.adversary import (
    assert_complete,
    assert_nothing_tainted_serves,
    certificate_of,
    champion_of,
    forget,
    in_the_middle_of,
    learn,
    learn_batch,
    learned_stream,
    merge,
    of_inbox,
    open_ticket,
    put_in_inbox,
    ready_versions,
    serve_all,
    state_of,
)
from tests.flows.conftest import deliver, make_stream

pytestmark = pytest.mark.usefixtures("ready", "plain_steps")


def test_a_deletion_broken_off_after_it_dropped_a_parent_replays_the_merge(backbone, tmp_path, monkeypatch):
    stream = learned_stream("parentless", backbone, tmp_path)
    with database.transaction() as session:
        (merged,) = [a for a in adapter_rows.adapters(session, stream.name) if a.parent_ids]
        before = ownership.objects_of(session, [merged.node])
    ticket = open_ticket(stream, records=[f"01-{n}" for n in range(120)])  # the first parent's every row
    work = rebuilding.repair_adapter

    def then_power_cut(*args):
        work(*args)
        power_cut()

    content = break_off_and_go_on(monkeypatch, ticket.ticket_id, "repair_adapter", then_power_cut)
    assert content["guarantee"] == "E0"
    with database.transaction() as session:
        left = adapter_rows.get_adapter(session, merged.adapter_id)
        assert left.parent_ids == merged.parent_ids[1:]
        old, new = (
            {o.sha256 for o in found if o.kind == "weights"}
            for found in (before, ownership.objects_of(session, [left.node]))
        )
    assert not old & new


def test_a_deletion_broken_off_after_it_emptied_a_shard_of_an_adapter_works_its_plan_to_the_end(
    backbone, tmp_path, monkeypatch
):
    """Trained again, the adapter no longer hangs on the shard: today's lineage alone would ask for nothing more."""
    stream = learned_stream("unhinged", backbone, tmp_path, merged=False)
    rows = [{**row, "who": "zed"} for row in deliver(tmp_path, "03", ["red", "blue"], rows=60)]
    put_in_inbox(stream.name, "03", rows)
    learn(stream)
    first, second = serve_all(stream)
    with database.transaction() as session:
        last = contents.done_shards(session, stream.name)[-1]
    adapters.refresh_adapter.fn(stream, last, first)
    merged = merge(stream, first, second)
    before = weights_of(merged)
    ticket = open_ticket(stream, "zed")
    content = break_off_and_go_on(monkeypatch, ticket.ticket_id, "_drop_stale_checkpoints", power_cut)
    assert (content["guarantee"], content["rebuilt"]["actions"]) == ("E0", {first: "retrain", merged: "replay"})
    assert {f"adapter:{first}", f"adapter:{merged}"} <= content["comparison"].keys()
    assert weights_of(merged) != before


def test_what_differs_or_was_not_compared_serves_in_no_later_version(backbone, tmp_path, monkeypatch):
    stream = learned_stream("doubted", backbone, tmp_path, merged=False)
    first, _ = serve_all(stream)
    ticket = open_ticket(stream, records=["01-3"])
    work = rebuilding.fit_trained

    def a_little_off(stream, adapter):
        work(stream, adapter)
        return adapters.fit_closed_forms(stream, adapter, {n: w * 1.001 for n, w in load_weights(adapter).items()})

    with monkeypatch.context() as patch:
        patch.setattr(rebuilding, "fit_trained", a_little_off)
        patch.setattr(saga, "compare", power_cut)
        with pytest.raises(OSError, match="power cut"):
            forget(ticket.ticket_id)
    registration.stand_in.fn(stream, open_ticket(stream, records=["02-3"]).ticket_id)
    assert first not in {a["adapter_id"] for a in manifests.load_manifest(stream.name, champion_of(stream))["adapters"]}
    forget(ticket.ticket_id)
    assert f"adapter:{first} differs" in state_of(ticket.ticket_id).note
    put_in_inbox(stream.name, "03", deliver(tmp_path, "03", ["pink", "grey"], rows=60))
    with pytest.raises(SuppressedRecordError, match="reopen the ticket"):
        learn(stream)
    opening.reopen_ticket(ticket.ticket_id, "test", "mended")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    [left] = batches.unfinished_batches.fn(stream)
    learn_batch(stream, left)
    assert first in {a["adapter_id"] for a in manifests.load_manifest(stream.name, champion_of(stream))["adapters"]}


def power_cut(*_):
    raise OSError("power cut")


def break_off_and_go_on(monkeypatch, ticket_id: str, name: str, cut) -> dict:
    """Work the ticket with a function of the rebuild replaced, then again as it is; its certificate."""
    with monkeypatch.context() as patch:
        patch.setattr(rebuilding, name, cut)
        with pytest.raises(OSError, match="power cut"):
            forget(ticket_id)
    forget(ticket_id)
    assert_complete(ticket_id)
    return certificate_of(ticket_id)


def weights_of(adapter_id: str) -> str:
    with database.transaction() as session:
        return ownership.find_object(session, f"adapter:{adapter_id}", "weights").sha256


def test_nothing_is_made_of_weights_that_a_broken_off_deletion_condemned(backbone, tmp_path, monkeypatch):
    """The rows are dropped, the adapters still hold them: what is made of their weights would have other bytes."""
    stream = learned_stream("broken-off", backbone, tmp_path, merged=False)
    first, second = serve_all(stream)
    with database.transaction() as session:
        shard = contents.done_shards(session, stream.name)[0]
    ticket = open_ticket(stream, "person-1")
    with monkeypatch.context() as patch:
        patch.setattr(saga, "rebuild", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            forget(ticket.ticket_id)
    with pytest.raises(SuppressedRecordError, match="not rebuilt and compared"):
        consolidation.merge_adapters.fn(stream, (first, second))
    with pytest.raises(SuppressedRecordError, match="not rebuilt and compared"):
        adapters.join_adapter.fn(stream, shard, second)
    retirement.retire_adapter.fn(second, "for this test")
    with pytest.raises(SuppressedRecordError, match=second):
        retirement.check_reinstate(stream, second)
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    retirement.reinstate_adapter.fn(stream, second, "it is rebuilt")
    consolidation.merge_adapters.fn(stream, (first, second))


def test_a_reopened_ticket_leaves_the_champion_that_came_after_it(backbone, tmp_path, monkeypatch):
    """Its markers were out of reach, and the stream learned another batch before they were back."""
    source = f"s3://{settings().inbox_bucket}/came-after/*.parquet"
    stream = make_stream("came-after", backbone, tmp_path, source=source)
    put_in_inbox(stream.name, "01", deliver(tmp_path, "01", ["red", "blue"], rows=60))
    learn(stream)
    ticket = open_ticket(stream, "person-3")
    markers, elsewhere = escrow(ticket.ticket_id), tmp_path / "markers"
    in_the_middle_of(monkeypatch, saga, "rebuild", lambda: markers.rename(elsewhere))
    forget(ticket.ticket_id)
    assert "no marker" in state_of(ticket.ticket_id).note
    put_in_inbox(stream.name, "02", deliver(tmp_path, "02", ["green", "gold"], rows=60))
    learn(stream)
    champion, ready = champion_of(stream), ready_versions(stream)
    elsewhere.rename(markers)
    opening.reopen_ticket(ticket.ticket_id, "ann", "the markers are back")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    assert (champion_of(stream), ready_versions(stream)) == (champion, ready)

    # a repeated change finds its version only where it would register the same
    again = [registration.register_change.fn(stream, f"ticket:{ticket.ticket_id}", "again", None) for _ in range(2)]
    assert again[0].version > champion
    assert again[1] == again[0]
    served = manifests.load_manifest(stream.name, again[0].version)["shards"]
    assert served == manifests.load_manifest(stream.name, champion)["shards"]


def test_a_version_that_holds_an_unfinished_batch_is_withdrawn_with_it(backbone, tmp_path):
    """The batch joined an adapter, its run ended, and another ticket registered that adapter."""
    stream = make_stream("joined", backbone, tmp_path, source=f"s3://{settings().inbox_bucket}/joined/*.parquet")
    of_batch = {name: deliver(tmp_path, name, ["red", "blue"], rows=60) for name in ("01", "02")}
    put_in_inbox(stream.name, "01", of_batch["01"])
    learn(stream)
    (adapter,) = serve_all(stream)
    put_in_inbox(stream.name, "02", [{**row, "who": f"later-{row['who']}"} for row in of_batch["02"]])
    ((uri, tag),) = batches.discover.fn(stream)
    batch = batches.read_batch.fn(stream, uri, tag)
    batches.encode_batch.fn(stream, batch)
    adapters.join_adapter.fn(stream, batch.shards[0], adapter)
    forget(open_ticket(stream, "person-3").ticket_id)
    holding = champion_of(stream)
    (served,) = manifests.load_manifest(stream.name, holding)["adapters"]
    assert batch.shards[0].shard_id in [part["shard_id"] for part in served["statistics"]]
    ticket = open_ticket(stream, "later-person-3")
    assert champion_of(stream) is None
    assert_nothing_tainted_serves(stream)
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    assert holding not in ready_versions(stream)


def begin_batch(stream, rows: list[dict]) -> Decision:
    """A run that is killed when it has read and encoded a batch, and decided on it."""
    put_in_inbox(stream.name, "02", rows)
    ((uri, tag),) = batches.discover.fn(stream)
    batch = batches.read_batch.fn(stream, uri, tag)
    batches.encode_batch.fn(stream, batch)
    (shard,) = batch.shards
    return decisions.decide.fn(stream, batch, shard, shift.measure_shift.fn(stream, shard))


def go_on(stream) -> list[tuple[str, str | None]]:
    """Learn what is unfinished; returns (kind, adapter) of every decision."""
    for batch in batches.unfinished_batches.fn(stream):
        learn_batch(stream, batch)
    with database.transaction() as session:
        return [(row.kind, row.adapter_id) for row in decision_log.decisions(session, stream.name)]


def test_a_batch_whose_adapter_a_ticket_took_is_decided_again(backbone, tmp_path):
    stream = make_stream("adapter-gone", backbone, tmp_path, source=of_inbox("adapter-gone"))
    first = deliver(tmp_path, "01", ["red", "blue"], rows=60)
    put_in_inbox(stream.name, "01", [{**row, "who": "leaves"} for row in first])
    learn(stream)
    serve_all(stream)
    assert begin_batch(stream, deliver(tmp_path, "02", ["red", "blue"], rows=60)).kind == DecisionKind.REUSE
    forget(open_ticket(stream, "leaves").ticket_id)
    assert go_on(stream)[1:] == [(DecisionKind.EXPAND, "adapter-gone-a2")]
    assert batches.unfinished_batches.fn(stream) == []
    assert champion_of(stream) is not None


@pytest.mark.parametrize("trained", [False, True])
def test_a_batch_that_a_ticket_left_too_small_for_its_adapter_is_held(backbone, tmp_path, trained):
    name = f"too-small-{trained}".lower()
    stream = make_stream(name, backbone, tmp_path, source=of_inbox(name))
    put_in_inbox(name, "01", deliver(tmp_path, "01", ["red", "blue"], rows=60))
    learn(stream)
    rows = [
        {**row, "who": "leaves" if n < 26 else "stays"}
        for n, row in enumerate(deliver(tmp_path, "02", ["green", "gold"], rows=30))
    ]
    decided = begin_batch(stream, rows)
    assert decided.kind == DecisionKind.EXPAND
    if trained:
        (batch,) = batches.unfinished_batches.fn(stream)
        adapters.train_adapter.fn(stream, batch.shards[0], decided.adapter_id)
    forget(open_ticket(stream, "leaves").ticket_id)
    assert go_on(stream)[1][0] == DecisionKind.HOLD
    assert batches.unfinished_batches.fn(stream) == []


def test_a_batch_that_a_ticket_left_large_enough_keeps_its_decision(backbone, tmp_path):
    stream = make_stream("large-enough", backbone, tmp_path, source=of_inbox("large-enough"))
    put_in_inbox(stream.name, "01", deliver(tmp_path, "01", ["red", "blue"], rows=60))
    learn(stream)
    decided = begin_batch(stream, deliver(tmp_path, "02", ["green", "gold"], rows=60))
    forget(open_ticket(stream, "person-3").ticket_id)
    assert go_on(stream)[1:] == [(DecisionKind.EXPAND, decided.adapter_id)]


def test_a_merge_goes_with_its_parents_where_each_has_too_few_rows_and_both_have_enough(backbone, tmp_path):
    """One held-out row is left in either batch: too few for a parent, enough for the merge of both."""
    stream = learned_stream("thinned", backbone, tmp_path)
    with database.transaction() as session:
        batches = contents.done_shards(session, stream.name)
    leaving = []
    for shard in batches:
        rows = load_rows(shard)
        stays = [*held_out(rows)[:1], *trainable(rows)[:4]]
        leaving += [("record", row.record) for row in rows if row not in stays]
    ticket = opening.open_ticket(stream.name, leaving, "test")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    with database.transaction() as session:
        every = adapter_rows.adapters(session, stream.name)
    assert {a.adapter_id: a.state for a in every} == {f"thinned-a{n}": AdapterState.ERASED for n in (1, 2, 3)}
    assert certificate_of(ticket.ticket_id)["rebuilt"]["actions"] == dict.fromkeys(
        ("thinned-a1", "thinned-a2", "thinned-a3"), "drop"
    )
