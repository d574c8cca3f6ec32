"""Streams and their batches. Every function takes the caller's session; none commits."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.orm import Session, aliased, selectinload

from registry import contents
from registry.errors import OvertakenError, StateError, UnknownIdError
from registry.records import Batch, BatchState, Delivery
from registry.stream import Stream
from registry.tables import BatchRow, DeliveryRow, QuarantineRow, ShardRow, StreamRow, in_chunks


def save_stream(session: Session, stream: Stream, backbone_digest: str) -> None:
    """Record the stream, or refuse a change that would mix artifacts of two recipes, or hide records from deletions;
    before the first batch there are none."""
    row = session.get(StreamRow, stream.name)
    config = stream.model_dump(mode="json")
    is_empty = not count_batches(session, stream.name)
    if row is not None and is_empty:
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
    before = Stream.model_validate(row.config)
    if row.recipe_digest != stream.recipe_digest:
        raise StateError(
            f"stream {stream.name!r} changed what shapes its artifacts ({_changes(before.shaping, stream.shaping)}): "
            "they could not be trained again; take that back in its file, or start a stream under a new name"
        )
    if before.naming != stream.naming and not is_empty:
        raise StateError(
            f"stream {stream.name!r} changed what names its records ({_changes(before.naming, stream.naming)}): a "
            "deletion would not find those of earlier batches; take that back in its file and deliver these columns "
            "under their old names, or start a stream under a new name"
        )
    row.config = config


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs of the fields of a stream file."""
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


def take_stream(session: Session, name: str, holder: str) -> None:
    """Note who works on the stream from now on."""
    _stream_row(session, name, lock=True).holder = holder


def require_holder(session: Session, name: str, holder: str) -> None:
    """Raise OvertakenError where another has taken the stream since; none does before this transaction ends."""
    found = _stream_row(session, name, lock=True).holder
    if found != holder:
        raise OvertakenError(name, found)


def backbone_digest(session: Session, name: str) -> str:
    return _stream_row(session, name).backbone_digest or ""


def _stream_row(session: Session, name: str, lock: bool = False) -> StreamRow:
    row = session.get(StreamRow, name, with_for_update=lock, populate_existing=lock)
    if row is None:
        raise UnknownIdError("stream", name, ", ".join(stream_names(session)))
    return row


def known_tags(session: Session, stream: str) -> dict[str, str]:
    """Tag of every source object that was taken in, or has the content of one that was -> the batch that it is."""
    query = select(DeliveryRow.tag, DeliveryRow.batch_id).where(DeliveryRow.stream == stream, DeliveryRow.tag != "")
    return dict(session.execute(query).tuples().all())


def batch_of(session: Session, stream: str, digest: str) -> str | None:
    """The batch that a source object of this content was taken in as."""
    query = select(DeliveryRow.batch_id).where(DeliveryRow.stream == stream, DeliveryRow.digest == digest)
    return session.scalars(query.limit(1)).first()


def taken_in_as(session: Session, digest: str) -> dict[str, str]:
    """Stream -> the batch that a source object of this content was taken in as: several streams may read one object."""
    query = select(DeliveryRow.stream, DeliveryRow.batch_id).where(DeliveryRow.digest == digest)
    return dict(session.execute(query).tuples().all())


def uris_of(session: Session, batch_ids: Iterable[str]) -> set[str]:
    """Of the source objects that these batches were taken in as, and of others with the same content."""
    found, whole = set[str](), aliased(BatchRow)
    # what was held of a batch came with it, and the deliveries are the whole batch's
    came_with = (whole.stream == BatchRow.stream, whole.uri == BatchRow.uri, whole.received_at == BatchRow.received_at)
    for chunk in in_chunks(sorted(batch_ids)):
        query = select(BatchRow.uri).where(BatchRow.batch_id.in_(chunk))
        of_these = select(whole.batch_id).join(BatchRow, and_(*came_with)).where(BatchRow.batch_id.in_(chunk))
        tags = session.scalars(select(DeliveryRow.tag).where(DeliveryRow.batch_id.in_(of_these), DeliveryRow.tag != ""))
        found |= {*session.scalars(query), *(tag.rpartition("#")[0] for tag in tags)}
    return found


def add_batch(session: Session, batch: Batch, delivery: Delivery, quarantined: dict[str, int]) -> Batch:
    """Enter a batch with its shards in the ledger; returns it with the shard ids and the ordinal it was given."""
    row = BatchRow(
        batch_id=batch.batch_id,
        stream=batch.stream,
        name=batch.name,
        ordinal=next_ordinal(session, batch.stream),
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


def next_ordinal(session: Session, stream: str) -> int:
    last = session.scalar(select(func.max(BatchRow.ordinal)).where(BatchRow.stream == stream))
    return 0 if last is None else last + 1


def add_delivery(session: Session, stream: str, delivery: Delivery, batch_id: str) -> None:
    """Know a source object, also one that a deletion rewrites or that has its content, as the batch it is. An empty tag
    stands for one that the store is yet to give."""
    no_tag = (DeliveryRow.stream == stream, DeliveryRow.digest == delivery.digest, DeliveryRow.tag == "")
    session.execute(delete(DeliveryRow).where(*no_tag))
    session.merge(DeliveryRow(stream=stream, digest=delivery.digest, tag=delivery.tag, batch_id=batch_id))


def forget_tags(session: Session, uri: str, left: str) -> None:
    """Every content that a source object had stays known, in every stream; the object as what it holds now alone, or
    as nothing: where the same as before is put in its place, that is looked at again."""
    begins = DeliveryRow.tag.startswith(f"{uri}#", autoescape=True)
    for row in session.scalars(select(DeliveryRow).where(begins, DeliveryRow.tag != left)).all():
        if row.tag.rpartition("#")[0] == uri:
            session.merge(DeliveryRow(stream=row.stream, digest=row.digest, tag="", batch_id=row.batch_id))
            session.delete(row)


def add_kept_out(session: Session, batch_id: str, rows: int) -> None:
    """Rows of suppressed targets that came with a batch's content once more."""
    more = update(BatchRow).where(BatchRow.batch_id == batch_id)
    session.execute(more.values(suppressed=BatchRow.suppressed + rows))


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


def renew_epochs(session: Session, stream: str) -> None:
    """Bring unfinished batches to the stream's deletion epoch; their work starts again from the rows that remain."""
    epoch = stream_epoch(session, stream)
    unfinished = update(BatchRow).where(BatchRow.stream == stream, BatchRow.state == BatchState.READ)
    session.execute(unfinished.values(epoch=epoch))


def quarantine_counts(session: Session, batch_id: str) -> dict[str, int]:
    rows = session.scalars(select(QuarantineRow).where(QuarantineRow.batch_id == batch_id))
    return {row.reason: row.rows for row in rows}


def received_at(session: Session, batch_id: str) -> datetime:
    row = session.get(BatchRow, batch_id)
    if row is None:
        raise UnknownIdError("batch", batch_id)
    return row.received_at


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
        shards=tuple(contents.to_shard(s) for s in row.shards),
        reason=row.reason,
    )
