"""A worker's disk follows the deletions that another machine worked."""

import shutil

import pytest

from infra import database
from infra.settings import settings
from registry import catalog, contents, ownership, tickets
from registry.records import TicketState
from tasks import blob_cache, prefix_cache
from tasks.identity import catalog_key, keyed_hash
from tasks.shards import load_rows
from tests.flows.adversary import forget, learn, learned_stream, open_ticket

pytestmark = pytest.mark.usefixtures("ready", "plain_steps")

KEPT = ("cache", "blobs", "followed")


@pytest.fixture(scope="module")
def stream(ready, backbone, tmp_path_factory):  # noqa: ARG001
    return learned_stream("elsewhere", backbone, tmp_path_factory.mktemp("elsewhere"), subjects=40)


def rows_of(stream):
    with database.transaction() as session:
        shards = [shard for batch in catalog.batches(session, stream.name) for shard in batch.shards]
    return [row for shard in shards for row in load_rows(shard)]


def test_another_machine_drops_what_a_deletion_left_on_its_disk(stream, tmp_path):
    rows = rows_of(stream)
    prefix_cache.states_of(stream, rows)
    before = blob_cache.digests()
    assert before
    for name in KEPT:
        if (settings().home / name).exists():
            shutil.copytree(settings().home / name, tmp_path / "disk" / name)

    gone = {row.record for row in rows if row.subject == keyed_hash("subject", stream.name, "person-3")}
    forget(open_ticket(stream, "person-3").ticket_id)
    for name in KEPT:  # the disk of a machine that had no part in this
        shutil.rmtree(settings().home / name, ignore_errors=True)
        if (tmp_path / "disk" / name).exists():
            shutil.copytree(tmp_path / "disk" / name, settings().home / name)
    assert gone
    assert gone <= prefix_cache.records_of(stream.name)

    learn(stream)
    assert prefix_cache.records_of(stream.name) == {row.record for row in rows} - gone
    with database.transaction() as session:
        assert ownership.owned_digests(session, blob_cache.digests()) == blob_cache.digests() < before
        assert contents.known_records(session, [catalog_key(record) for record in gone]) == set()


def test_states_are_not_kept_where_a_ticket_came_between_reading_and_writing(stream, monkeypatch):
    """A `train` run on a machine that shares the home holds the rows in memory while `forget` purges them."""
    rows = rows_of(stream)
    mine = [row for row in rows if row.subject == keyed_hash("subject", stream.name, "person-5")]
    prefix_cache.clear(stream.name)
    encode = prefix_cache.encode

    def late(stream, chunk):
        monkeypatch.setattr(prefix_cache, "encode", encode)
        forget(open_ticket(stream, "person-5").ticket_id)
        return encode(stream, chunk)

    monkeypatch.setattr(prefix_cache, "encode", late)
    states = prefix_cache.states_of(stream, rows)
    assert len(states) == len(rows)
    assert mine
    assert prefix_cache.records_of(stream.name) == {row.record for row in rows} - {row.record for row in mine}
    with database.transaction() as session:
        assert not tickets.tickets(session, stream.name, TicketState.IN_PROGRESS)
