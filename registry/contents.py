"""Shards, their records and whose they are. Every function takes the caller's session; none commits."""

from collections.abc import Iterable, Sequence

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session, joinedload

from registry.records import BatchState, Shard
from registry.tables import BatchRow, RecordRow, ShardRow, SubjectRow, in_chunks


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
        found += [to_shard(row) for row in session.scalars(query.options(joinedload(ShardRow.batch)))]
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
    return [to_shard(row) for row in session.scalars(query)]


def done_ages(session: Session, stream: str) -> dict[int, int]:
    """Shard id -> how many batches that changed the model are newer than its own. No objects: there are many."""
    query = select(BatchRow.ordinal, ShardRow.shard_id).join(ShardRow, ShardRow.batch_id == BatchRow.batch_id)
    done = session.execute(query.where(BatchRow.stream == stream, BatchRow.state == BatchState.DONE)).tuples().all()
    age = {ordinal: n for n, ordinal in enumerate(sorted({ordinal for ordinal, _ in done}, reverse=True))}
    return {shard_id: age[ordinal] for ordinal, shard_id in done}


def to_shard(row: ShardRow) -> Shard:
    return Shard(row.shard_id, row.batch_id, row.batch.name, row.group, row.rows, row.held_out, row.labelled)
