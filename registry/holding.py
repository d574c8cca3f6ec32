"""Batches that are held: set aside, judged again, let go. Each function takes the caller's session; none commits."""

from collections.abc import Collection
from hashlib import sha256

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from registry import catalog, contents, ownership
from registry.errors import StateError
from registry.records import Batch, BatchState
from registry.tables import BatchRow, DecisionRow, RecordRow, ShardRow

_INSTEAD = {
    BatchState.READ: "the next `deciduous run` decides on it",
    BatchState.DONE: "to forget records of it, `deciduous erase` them",
    BatchState.DISCARDED: "deliver its records in another object",
}
"""What to do about a batch that is not held."""

EMPTIED = "a ticket took its every row"
"""Why a batch is finished that was never learned."""


def set_aside(session: Session, batch_id: str, shard_ids: Collection[int], reason: str) -> Batch:
    """Make these shards of a batch a held batch of their own; its name is the batch's with "-held" behind it."""
    row = session.get_one(BatchRow, batch_id)
    moved = [shard for shard in row.shards if shard.shard_id in shard_ids]
    rest = BatchRow(
        batch_id=sha256(f"{batch_id}\x1fheld".encode()).hexdigest()[:12],
        stream=row.stream,
        name=f"{row.name}-held",
        ordinal=catalog.next_ordinal(session, row.stream),
        uri=row.uri,
        state=BatchState.HELD,
        rows=sum(shard.rows for shard in moved),
        quarantined=0,
        suppressed=0,
        epoch=row.epoch,
        reason=reason,
        received_at=row.received_at,
        shards=moved,
    )
    row.rows -= rest.rows
    session.add(rest)
    session.flush()
    decided = update(DecisionRow).where(DecisionRow.shard_id.in_(shard_ids))
    session.execute(decided.values(batch_id=rest.batch_id))
    session.refresh(row, ["shards"])
    return catalog.get_batch(session, rest.batch_id)


def finish_emptied(session: Session, batch_id: str) -> None:
    """A held batch of which a ticket took every row waits for nobody any more."""
    batch = catalog.get_batch(session, batch_id)
    if batch.state == BatchState.HELD and not any(shard.rows for shard in batch.shards):
        catalog.set_batch_state(session, batch_id, BatchState.DONE, EMPTIED)


def reopen_batch(session: Session, batch_id: str) -> Batch:
    """Let the next run judge a held batch again, from its decisions on. Raises StateError where it is not held."""
    batch = require_held(session, batch_id)
    session.execute(delete(DecisionRow).where(DecisionRow.batch_id == batch_id))
    catalog.set_batch_state(session, batch_id, BatchState.READ)
    catalog.renew_epochs(session, batch.stream)
    return batch


def discard_batch(session: Session, batch_id: str) -> None:
    """Let go of a held batch's records and of all that was stored of it; that it came, and why it was held, stays."""
    batch = require_held(session, batch_id)
    theirs = RecordRow.shard_id.in_([shard.shard_id for shard in batch.shards])
    subjects = session.scalars(select(RecordRow.subject_id).where(theirs).distinct()).all()
    session.execute(delete(RecordRow).where(theirs))
    contents.drop_subjects(session, subjects)
    for owner in (batch.node, *(shard.node for shard in batch.shards)):
        ownership.drop_objects(session, owner)
    emptied = update(ShardRow).where(ShardRow.batch_id == batch_id)
    session.execute(emptied.values(rows=0, held_out=0, labelled=0))
    catalog.set_batch_state(session, batch_id, BatchState.DISCARDED, "discarded by hand")


def require_held(session: Session, batch_id: str) -> Batch:
    batch = catalog.get_batch(session, batch_id)
    if batch.state != BatchState.HELD:
        told = f"batch {batch.name} ({batch_id}) is {batch.state.value}; only a held batch is judged again or discarded"
        raise StateError(f"{told}: {_INSTEAD[batch.state]}")
    return batch
