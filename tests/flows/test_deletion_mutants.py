"""Each broken variant of the deletion is caught by gate, comparison or sweep; once mended, the ticket completes."""

import pytest

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, contents, ownership, tickets
from registry.errors import PipelineError
from registry.records import AdapterState, TicketState
from tasks import blobs, forgetting, prefix_cache, purging, rebuilding, registration, shards, training
from tasks import tickets as opening
from tests.flows.adversary import (
    assert_complete,
    assert_nothing_tainted_serves,
    forget,
    learned_stream,
    open_ticket,
    state_of,
)

pytestmark = pytest.mark.usefixtures("ready", "plain_steps")


@pytest.fixture(scope="module")
def stream(ready, backbone, tmp_path_factory):  # noqa: ARG001
    return learned_stream("mutants", backbone, tmp_path_factory.mktemp("mutants"), subjects=40)


def any_checkpoint(owner: str, kind: str):
    """A checkpoint of the adapter, whatever records it saw."""
    with database.transaction() as session:
        found = [o for o in ownership.objects_of(session, [owner]) if o.kind.startswith("checkpoint:")]
    return found[-1] if found and kind.startswith("checkpoint:") else None


STORED_ROWS = {}


def rows_as_they_were(_stream, shard, _rows):
    return STORED_ROWS[shard.node]


def nothing(*_args, **_kwargs):
    return None


def as_it_was(_stream, adapter, **_kwargs):
    return adapter


def none_found(*_args, **_kwargs):
    return []


HOLD = blobs.Drafts.hold


def all_but_statistics(self, prefix, owner, kind, tensors):
    if not kind.startswith("statistics:"):
        HOLD(self, prefix, owner, kind, tensors)


MUTANTS = {
    "an adapter is not trained again": (rebuilding, "fit_trained", as_it_was),
    "a merge is not replayed": (rebuilding, "_replay", nothing),
    "training goes on from a checkpoint that saw the records": (training.blobs, "find", any_checkpoint),
    "the shards' statistics stay": (shards, "fit_shard", nothing),
    "an adapter's statistics stay": (blobs.Drafts, "hold", all_but_statistics),
    "the rows stay in the store": (shards, "store_rows", rows_as_they_were),
    "the records stay in the catalog": (tickets, "forget_records", nothing),
    "cached states stay": (prefix_cache, "purge", nothing),
    "dead blobs stay": (purging, "collect_garbage", none_found),
    "source objects stay": (purging, "_rewrite_source", lambda *_: True),
    "older versions of source objects stay": (purging, "_purge_older", nothing),
    "withdrawn versions stay": (purging, "_erase_version", lambda *_: (0, 0)),
    "markers are not kept": (forgetting, "keep_markers", nothing),
}


QUICK = (1, 5, 9)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, id=name.replace(" ", "-"), marks=() if number in QUICK else pytest.mark.services)
        for number, name in enumerate(MUTANTS)
    ],
)
def test_a_broken_deletion_is_caught(stream, monkeypatch, number):
    module, name, broken = list(MUTANTS.values())[number]
    with database.transaction() as session:
        stored = ownership.objects_of(session, [shard.node for shard in contents.done_shards(session, stream.name)])
    STORED_ROWS.update({each.owner: each for each in stored if each.kind == "rows"})
    ticket = open_ticket(stream, f"person-{number}")
    assert ticket.records == 6
    with monkeypatch.context() as patch:
        patch.setattr(module, name, broken)
        try:
            forget(ticket.ticket_id)
        except (PipelineError, AssertionError, KeyError):
            assert state_of(ticket.ticket_id).state == TicketState.IN_PROGRESS
        else:
            closed = state_of(ticket.ticket_id)
            assert closed.state == TicketState.EXCEPTION
            assert f"deciduous ticket reopen {ticket.ticket_id}" in closed.note
    assert_nothing_tainted_serves(stream)
    if name == "keep_markers":
        assert "no marker" in state_of(ticket.ticket_id).note
        return  # what was not kept cannot be looked for afterwards: the ticket stays an exception
    if state_of(ticket.ticket_id).state == TicketState.EXCEPTION:
        opening.reopen_ticket(ticket.ticket_id, "test", "mended")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)


def test_a_version_that_the_gate_lets_through_by_mistake_is_caught(stream, monkeypatch):
    """The withdrawal forgotten: the ticket itself still withdraws under its lock."""
    with monkeypatch.context() as patch:
        patch.setattr(opening, "withdraw_versions", nothing)
        ticket = open_ticket(stream, "person-30")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    assert_nothing_tainted_serves(stream)


def test_the_gate_refuses_an_adapter_that_was_put_back(stream):
    """Weights from before the ticket, named again in the catalog after it: as a restored backup would."""
    with database.transaction() as session:
        adapter = adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])[0]
        old = ownership.get_object(session, adapter.node, "weights")
    ticket = open_ticket(stream, "person-31")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    with database.transaction() as session:
        new = ownership.get_object(session, adapter.node, "weights")
        assert new.sha256 != old.sha256
        ownership.put_object(session, old)
        epoch = catalog.stream_epoch(session, stream.name)
    try:
        with pytest.raises(PipelineError, match="blobs that deleted records shaped"):
            registration.register_change.fn(stream, "merge:forged", "put back", epoch)
    finally:
        with database.transaction() as session:
            ownership.put_object(session, new)
