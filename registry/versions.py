"""Model versions, the aliases' history and the accuracy matrix. Takes the caller's session, never commits."""

from collections.abc import Collection, Iterable

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from registry import catalog
from registry.errors import UnknownIdError
from registry.records import BatchState, ModelVersion, VersionState
from registry.tables import AccuracyRow, AliasEventRow, BatchRow, VersionRow, in_chunks

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"

STAND_IN = "unaffected:"
"""Begins the cause of a version that was made of what a ticket leaves alone."""

MEANWHILE = "meanwhile:"
"""Begins the cause of a version that serves while what a ticket reached is rebuilt."""

BEYOND = 2**31
"""No database numbers versions so high, and none is asked for one."""


def add_version(session: Session, version: ModelVersion, manifest_sha256: str, cause: str) -> None:
    session.add(
        VersionRow(
            stream=version.stream,
            version=version.version,
            run_id=version.run_id,
            manifest_key=version.manifest_key,
            manifest_sha256=manifest_sha256,
            epoch=version.epoch,
            state=version.state,
            accuracy=version.accuracy,
            reason=version.reason,
            cause=cause,
        )
    )
    session.flush()


def find_by_cause(session: Session, stream: str, cause: str) -> ModelVersion | None:
    query = select(VersionRow).where(VersionRow.stream == stream, VersionRow.cause == cause)
    row = session.scalar(query.order_by(VersionRow.version.desc()))
    return None if row is None else _to_record(row)


def get_version(session: Session, stream: str, version: int) -> ModelVersion:
    row = session.get(VersionRow, (stream, version)) if version < BEYOND else None
    if row is None:
        catalog.stream_epoch(session, stream)  # of an unknown stream no version can be meant
        known = ", ".join(str(v.version) for v in versions(session, stream))
        raise UnknownIdError("version", f"{stream}/{version}", known)
    return _to_record(row)


def versions(session: Session, stream: str, *states: VersionState) -> list[ModelVersion]:
    query = select(VersionRow).where(VersionRow.stream == stream).order_by(VersionRow.version)
    if states:
        query = query.where(VersionRow.state.in_(states))
    return [_to_record(row) for row in session.scalars(query)]


def registered_since(session: Session, stream: str, batch_ids: Iterable[str]) -> list[int]:
    """Versions, erased ones apart, since the first of these batches was received: all that may rest on them.

    A join, a refresh or growth changes an adapter before its batch leads to a version, and whatever is registered
    meanwhile holds it. Clocks of several machines differ: never later than the first version that a batch led to. What
    is held or discarded changed nothing."""
    named = list(batch_ids)
    causes = [find_by_cause(session, stream, f"batch:{batch_id}") for batch_id in named]
    firsts = {version.version for version in causes if version is not None}
    for chunk in in_chunks(named):
        these = BatchRow.batch_id.in_(chunk), BatchRow.state.not_in([BatchState.HELD, BatchState.DISCARDED])
        received = select(func.min(BatchRow.received_at)).where(*these).scalar_subquery()
        later = VersionRow.stream == stream, VersionRow.created_at >= received
        firsts.add(session.scalar(select(func.min(VersionRow.version)).where(*later)) or BEYOND)
    known = versions(session, stream, VersionState.READY, VersionState.QUARANTINED)
    return [version.version for version in known if version.version >= min(firsts, default=BEYOND)]


def stand_ins(session: Session, stream: str) -> set[int]:
    """Ready versions that were made of what a ticket leaves alone; a later ticket withdraws them like any other."""
    query = select(VersionRow.version).where(VersionRow.stream == stream, VersionRow.state == VersionState.READY)
    return set(session.scalars(query.where(VersionRow.cause.startswith(STAND_IN))))


def is_interim(session: Session, stream: str, version: int) -> bool:
    """Whether a ticket had it made to serve until the rest was rebuilt: no version to go back to."""
    cause = session.get_one(VersionRow, (stream, version)).cause
    return cause.startswith((STAND_IN, MEANWHILE))


def manifest_digest(session: Session, stream: str, version: int) -> str:
    return session.get_one(VersionRow, (stream, version)).manifest_sha256


def find_by_manifest(session: Session, stream: str, sha256: str) -> list[int]:
    """The numbers of the versions whose manifest has this digest, the newest first."""
    query = select(VersionRow.version).where(VersionRow.stream == stream, VersionRow.manifest_sha256 == sha256)
    return list(session.scalars(query.order_by(VersionRow.version.desc())))


def set_state(session: Session, stream: str, version: int, state: VersionState) -> None:
    session.execute(
        update(VersionRow).where(VersionRow.stream == stream, VersionRow.version == version).values(state=state)
    )


def alias_of(session: Session, stream: str, alias: str) -> int | None:
    """The version an alias names now, by its last recorded move."""
    query = select(AliasEventRow.version).where(AliasEventRow.stream == stream, AliasEventRow.alias == alias)
    return session.scalar(query.order_by(AliasEventRow.event_id.desc()).limit(1))


def add_alias_event(session: Session, stream: str, alias: str, version: int | None, by: str, reason: str) -> None:
    before = alias_of(session, stream, alias)
    session.add(AliasEventRow(stream=stream, alias=alias, version=version, previous=before, by=by, reason=reason))
    session.flush()


def last_champion(session: Session, stream: str) -> int | None:
    """The ready version that was champion last."""
    ready = (VersionRow.stream == stream) & (VersionRow.state == VersionState.READY)
    query = select(AliasEventRow.version).join(VersionRow, ready & (VersionRow.version == AliasEventRow.version))
    query = query.where(AliasEventRow.stream == stream, AliasEventRow.alias == CHAMPION)
    return session.scalar(query.order_by(AliasEventRow.event_id.desc()).limit(1))


def was_named(session: Session, stream: str, version: int) -> bool:
    """Whether an alias ever named the version."""
    query = select(AliasEventRow.event_id).where(AliasEventRow.stream == stream, AliasEventRow.version == version)
    return session.scalar(query.limit(1)) is not None


def last_alias_event(session: Session, stream: str, alias: str) -> AliasEventRow | None:
    query = select(AliasEventRow).where(AliasEventRow.stream == stream, AliasEventRow.alias == alias)
    return session.scalar(query.order_by(AliasEventRow.event_id.desc()).limit(1))


def alias_history(session: Session, stream: str) -> list[AliasEventRow]:
    query = select(AliasEventRow).where(AliasEventRow.stream == stream).order_by(AliasEventRow.event_id)
    return list(session.scalars(query))


def add_accuracies(session: Session, stream: str, version: int, cells: Iterable[tuple[str, float, float, int]]) -> None:
    """Cells are (batch id, accuracy, accuracy of the exact head, held-out rows)."""
    session.execute(delete(AccuracyRow).where(AccuracyRow.stream == stream, AccuracyRow.version == version))
    rows = [
        {"stream": stream, "version": version, "batch_id": b, "accuracy": a, "exact_head": e, "rows": n}
        for b, a, e, n in cells
    ]
    if rows:
        session.execute(insert(AccuracyRow), rows)


def accuracies(
    session: Session, stream: str, version: int, only: Collection[str] | None = None
) -> dict[str, tuple[float, float, int]]:
    """Batch id -> (accuracy, accuracy of the exact head, rows), in the order the batches came; `only` of these."""
    query = (
        select(AccuracyRow.batch_id, AccuracyRow.accuracy, AccuracyRow.exact_head, AccuracyRow.rows)
        .join(BatchRow, BatchRow.batch_id == AccuracyRow.batch_id)
        .where(AccuracyRow.stream == stream, AccuracyRow.version == version)
        .order_by(BatchRow.ordinal)
    )
    if only is not None:
        query = query.where(AccuracyRow.batch_id.in_(only))
    return {batch: (accuracy, exact, rows) for batch, accuracy, exact, rows in session.execute(query).tuples()}


def count_versions(session: Session, stream: str) -> int:
    return session.scalar(select(func.count()).select_from(VersionRow).where(VersionRow.stream == stream)) or 0


def _to_record(row: VersionRow) -> ModelVersion:
    return ModelVersion(
        stream=row.stream,
        version=row.version,
        run_id=row.run_id,
        manifest_key=row.manifest_key,
        epoch=row.epoch,
        state=VersionState(row.state),
        accuracy=row.accuracy,
        reason=row.reason,
    )
