"""Streams, batches, shards and records. Every function takes the caller's session; none commits."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.orm import Session, joinedload, selectinload

from registry import ownership
from registry.errors import StateError, UnknownIdError
from registry.records import Batch, BatchState, Delivery, Shard
from registry.stream import Stream
from registry.tables import (
    BatchRow,
    DecisionRow,
    DeliveryRow,
    QuarantineRow,
    RecordRow,
    ShardRow,
    StreamRow,
    SubjectRow,
    in_chunks,
)

_INSTEAD = {
    BatchState.READ: "the next `deciduous run` decides on it",
    BatchState.DONE: "to forget records of it, `deciduous erase` them",
    BatchState.DISCARDED: "deliver its records in another object",
}
"""What to do about a batch that is not held."""

EMPTIED = "a ticket took its every row"
"""Why a batch is finished that was never learned."""


def save_stream(session: Session, stream: Stream, backbone_digest: str) -> None:
    """Record the stream, or refuse a change that would mix artifacts of two recipes; before the first batch there are
    none."""
    row = session.get(StreamRow, stream.name)
    config = stream.model_dump(mode="json")
    if row is not None and not count_batches(session, stream.name):
        row.recipe_digest, row.backbone_digest = stream.recipe_digest, backbone_digest
    if row is None:
        session.add(
            StreamRow(
                name=stream.name, config=config, recipe_digest=stream.recipe_digest, backbone_digest=backbone_digest
            )
        )
        session.flush()
        return
    require_backbone(session, stream, backbone_digest)
    if row.recipe_digest != stream.recipe_digest:
        raise StateError(
            f"stream {stream.name!r} changed what shapes its artifacts ({_changes(row.config, config)}): they could "
            "not be trained again; take that back in its file, or start a stream under a new name"
        )
    row.config = config


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs of the fields that shape artifacts, as a stream file names them."""
    was, now = (Stream.model_validate(config).shaping for config in (before, after))
    return ", ".join(f"{name}: {was[name]} -> {now[name]}" for name in was if name in now and was[name] != now[name])


def require_backbone(session: Session, stream: Stream, digest: str) -> None:
    """Raise StateError where the stream's artifacts were made with another backbone than this one."""
    recorded = backbone_digest(session, stream.name)
    if recorded != digest:
        raise StateError(
            f"stream {stream.name!r} was trained on backbone digest {recorded}, {stream.backbone!r} now has {digest}; "
            "restore that backbone, or the version of deciduous that trained it, or start a stream under a new name"
        )


def get_stream(session: Session, name: str) -> Stream:
    return Stream.model_validate(_stream_row(session, name).config)


def stream_names(session: Session) -> list[str]:
    return list(session.scalars(select(StreamRow.name).order_by(StreamRow.name)))


def stream_epoch(session: Session, name: str, lock: bool = False) -> int:
    """The stream's deletion epoch; with `lock` no ticket takes effect before this transaction ends."""
    return _stream_row(session, name, lock).epoch


def backbone_digest(session: Session, name: str) -> str:
    return _stream_row(session, name).backbone_digest or ""


def _stream_row(session: Session, name: str, lock: bool = False) -> StreamRow:
    row = session.get(StreamRow, name, with_for_update=lock, populate_existing=lock)
    if row is None:
        raise UnknownIdError("stream", name, ", ".join(stream_names(session)))
    return row


def known_deliveries(session: Session, stream: str) -> tuple[set[str], set[str]]:
    """(content digests, tags) of every source object that was taken in."""
    query = select(DeliveryRow.digest, DeliveryRow.tag).where(DeliveryRow.stream == stream)
    rows = session.execute(query).tuples().all()
    return {digest for digest, _ in rows}, {tag for _, tag in rows}


def batch_of(session: Session, stream: str, digest: str) -> str | None:
    """The batch that a source object of this content was taken in as."""
    row = session.get(DeliveryRow, (stream, digest))
    return None if row is None else row.batch_id


def add_batch(session: Session, batch: Batch, delivery: Delivery, quarantined: dict[str, int]) -> Batch:
    """Enter a batch with its shards in the ledger; returns it with the shard ids and the ordinal it was given."""
    row = BatchRow(
        batch_id=batch.batch_id,
        stream=batch.stream,
        name=batch.name,
        ordinal=_next_ordinal(session, batch.stream),
        uri=batch.uri,
        state=batch.state,
        rows=batch.rows,
        quarantined=batch.quarantined,
        suppressed=batch.suppressed,
        epoch=batch.epoch,
        shards=[ShardRow(group=s.group, rows=s.rows, held_out=s.held_out, labelled=s.labelled) for s in batch.shards],
    )
    session.add(row)
    session.flush()
    add_delivery(session, batch.stream, delivery, batch.batch_id)
    session.add_all(QuarantineRow(batch_id=batch.batch_id, reason=r, rows=n) for r, n in quarantined.items())
    session.flush()
    return _to_batch(row)


def _next_ordinal(session: Session, stream: str) -> int:
    last = session.scalar(select(func.max(BatchRow.ordinal)).where(BatchRow.stream == stream))
    return 0 if last is None else last + 1


def add_delivery(session: Session, stream: str, delivery: Delivery, batch_id: str) -> None:
    """Know a source object, also one that a deletion rewrote, as the batch it is."""
    session.merge(DeliveryRow(stream=stream, digest=delivery.digest, tag=delivery.tag, batch_id=batch_id))


def get_batch(session: Session, batch_id: str) -> Batch:
    row = session.get(BatchRow, batch_id)
    if row is None:
        raise UnknownIdError("batch", batch_id)
    return _to_batch(row)


def batch_id_of(session: Session, named: str) -> str:
    """The id of the batch that has this id, or this name where no other has it. Raises UnknownIdError, or StateError
    where several have the name."""
    query = select(BatchRow).where(or_(BatchRow.batch_id == named, BatchRow.name == named)).order_by(BatchRow.batch_id)
    found = session.scalars(query).all()
    if any(row.batch_id == named for row in found):
        return named
    if not found:
        raise UnknownIdError("batch", named)
    if len(found) > 1:
        ids = ", ".join(f"{row.batch_id} ({row.stream})" for row in found)
        raise StateError(f"{len(found)} batches are named {named!r}; say which by its id: {ids}")
    return found[0].batch_id


def batches(session: Session, stream: str, *states: BatchState) -> list[Batch]:
    """Oldest first, of these states or all."""
    query = select(BatchRow).where(BatchRow.stream == stream).order_by(BatchRow.ordinal)
    query = query.options(selectinload(BatchRow.shards))  # else a query for each batch
    if states:
        query = query.where(BatchRow.state.in_(states))
    return [_to_batch(row) for row in session.scalars(query)]


def count_batches(session: Session, stream: str) -> int:
    return session.scalar(select(func.count()).select_from(BatchRow).where(BatchRow.stream == stream)) or 0


def batch_names(session: Session, batch_ids: Iterable[str]) -> dict[str, str]:
    """Batch id -> name."""
    found: dict[str, str] = {}
    for chunk in in_chunks(list(batch_ids)):
        query = select(BatchRow.batch_id, BatchRow.name).where(BatchRow.batch_id.in_(chunk))
        found |= dict(session.execute(query).tuples().all())
    return found


def last_batches(session: Session, stream: str, count: int, *states: BatchState) -> list[Batch]:
    """The newest batches, of these states or all, oldest of them first."""
    query = select(BatchRow).where(BatchRow.stream == stream).order_by(BatchRow.ordinal.desc()).limit(count)
    if states:
        query = query.where(BatchRow.state.in_(states))
    return [_to_batch(row) for row in session.scalars(query.options(selectinload(BatchRow.shards)))][::-1]


def set_batch_state(session: Session, batch_id: str, state: BatchState, reason: str = "") -> None:
    session.execute(update(BatchRow).where(BatchRow.batch_id == batch_id).values(state=state, reason=reason))


def finish_emptied(session: Session, batch_id: str) -> None:
    """A held batch of which a ticket took every row waits for nobody any more."""
    batch = get_batch(session, batch_id)
    if batch.state == BatchState.HELD and not any(shard.rows for shard in batch.shards):
        set_batch_state(session, batch_id, BatchState.DONE, EMPTIED)


def set_aside(session: Session, batch_id: str, shard_ids: Collection[int], reason: str) -> Batch:
    """Make these shards of a batch a held batch of their own; its name is the batch's with "-held" behind it."""
    row = session.get_one(BatchRow, batch_id)
    moved = [shard for shard in row.shards if shard.shard_id in shard_ids]
    rest = BatchRow(
        batch_id=sha256(f"{batch_id}\x1fheld".encode()).hexdigest()[:12],
        stream=row.stream,
        name=f"{row.name}-held",
        ordinal=_next_ordinal(session, row.stream),
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
    return _to_batch(rest)


def reopen_batch(session: Session, batch_id: str) -> Batch:
    """Let the next run judge a held batch again, from its decisions on. Raises StateError where it is not held."""
    batch = require_held(session, batch_id)
    session.execute(delete(DecisionRow).where(DecisionRow.batch_id == batch_id))
    set_batch_state(session, batch_id, BatchState.READ)
    renew_epochs(session, batch.stream)
    return batch


def discard_batch(session: Session, batch_id: str) -> None:
    """Let go of a held batch's records and of all that was stored of it; that it came, and why it was held, stays."""
    batch = require_held(session, batch_id)
    theirs = RecordRow.shard_id.in_([shard.shard_id for shard in batch.shards])
    subjects = session.scalars(select(RecordRow.subject_id).where(theirs).distinct()).all()
    session.execute(delete(RecordRow).where(theirs))
    drop_subjects(session, subjects)
    for owner in (batch.node, *(shard.node for shard in batch.shards)):
        ownership.drop_objects(session, owner)
    set_batch_state(session, batch_id, BatchState.DISCARDED, "discarded by hand")


def require_held(session: Session, batch_id: str) -> Batch:
    batch = get_batch(session, batch_id)
    if batch.state != BatchState.HELD:
        told = f"batch {batch.name} ({batch_id}) is {batch.state.value}; only a held batch is judged again or discarded"
        raise StateError(f"{told}: {_INSTEAD[batch.state]}")
    return batch


def renew_epochs(session: Session, stream: str) -> None:
    """Bring unfinished batches to the stream's deletion epoch; their work starts again from the rows that remain."""
    epoch = stream_epoch(session, stream)
    unfinished = update(BatchRow).where(BatchRow.stream == stream, BatchRow.state == BatchState.READ)
    session.execute(unfinished.values(epoch=epoch))


def quarantine_counts(session: Session, batch_id: str) -> dict[str, int]:
    rows = session.scalars(select(QuarantineRow).where(QuarantineRow.batch_id == batch_id))
    return {row.reason: row.rows for row in rows}


def add_records(session: Session, records: Iterable[dict[str, int]]) -> None:
    """Records as {key, subject, shard_id}: 63 bits of keyed hashes, and the shard's number."""
    rows = list(records)
    if rows:
        numbers = _subject_ids(session, sorted({row["subject"] for row in rows}))
        named = ({"key": r["key"], "subject_id": numbers[r["subject"]], "shard_id": r["shard_id"]} for r in rows)
        session.execute(insert(RecordRow), list(named))


def _subject_ids(session: Session, keys: Sequence[int]) -> dict[int, int]:
    """Subject key -> its number; a subject that is new gets one."""
    known: dict[int, int] = {}
    for chunk in in_chunks(keys):
        query = select(SubjectRow.key, SubjectRow.subject_id).where(SubjectRow.key.in_(chunk))
        known |= dict(session.execute(query).tuples().all())
    new = [SubjectRow(key=key) for key in keys if key not in known]
    session.add_all(new)
    session.flush()
    return known | {row.key: row.subject_id for row in new}


def drop_subjects(session: Session, subject_ids: Sequence[int]) -> None:
    """Drop those of the subjects that no record names any more."""
    left = select(RecordRow.key).where(RecordRow.subject_id == SubjectRow.subject_id).exists()
    for chunk in in_chunks(subject_ids):
        session.execute(delete(SubjectRow).where(SubjectRow.subject_id.in_(chunk), ~left))


def known_records(session: Session, keys: Sequence[int]) -> set[int]:
    found: set[int] = set()
    for chunk in in_chunks(keys):
        found.update(session.scalars(select(RecordRow.key).where(RecordRow.key.in_(chunk))))
    return found


def shards(session: Session, shard_ids: Iterable[int]) -> list[Shard]:
    found: list[Shard] = []
    for chunk in in_chunks(sorted(set(shard_ids))):
        query = select(ShardRow).where(ShardRow.shard_id.in_(chunk)).order_by(ShardRow.shard_id)
        found += [_to_shard(row) for row in session.scalars(query.options(joinedload(ShardRow.batch)))]
    return found


def done_shards(session: Session, stream: str) -> list[Shard]:
    """Shards of every batch that changed the model, oldest first."""
    return _shards_of(session, stream, BatchState.DONE)


def stored_shards(session: Session, stream: str) -> list[Shard]:
    """Shards of every batch whose rows are kept: also of those that wait or are held, oldest first."""
    return _shards_of(session, stream, BatchState.READ, BatchState.DONE, BatchState.HELD)


def _shards_of(session: Session, stream: str, *states: BatchState) -> list[Shard]:
    query = (
        select(ShardRow)
        .join(BatchRow)
        .where(BatchRow.stream == stream, BatchRow.state.in_(states), ShardRow.rows > 0)
        .order_by(BatchRow.ordinal, ShardRow.shard_id)
        .options(joinedload(ShardRow.batch))
    )
    return [_to_shard(row) for row in session.scalars(query)]


def done_ages(session: Session, stream: str) -> dict[int, int]:
    """Shard id -> how many batches that changed the model are newer than its own. No objects: there are many."""
    query = select(BatchRow.ordinal, ShardRow.shard_id).join(ShardRow, ShardRow.batch_id == BatchRow.batch_id)
    done = session.execute(query.where(BatchRow.stream == stream, BatchRow.state == BatchState.DONE)).tuples().all()
    age = {ordinal: n for n, ordinal in enumerate(sorted({ordinal for ordinal, _ in done}, reverse=True))}
    return {shard_id: age[ordinal] for ordinal, shard_id in done}


def received_at(session: Session, batch_id: str) -> datetime:
    row = session.get(BatchRow, batch_id)
    if row is None:
        raise UnknownIdError("batch", batch_id)
    return row.received_at


def _to_shard(row: ShardRow) -> Shard:
    return Shard(row.shard_id, row.batch_id, row.batch.name, row.group, row.rows, row.held_out, row.labelled)


def _to_batch(row: BatchRow) -> Batch:
    return Batch(
        batch_id=row.batch_id,
        stream=row.stream,
        name=row.name,
        ordinal=row.ordinal,
        uri=row.uri,
        state=BatchState(row.state),
        rows=row.rows,
        quarantined=row.quarantined,
        suppressed=row.suppressed,
        epoch=row.epoch,
        shards=tuple(_to_shard(s) for s in row.shards),
    )
