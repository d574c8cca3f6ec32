"""Deletion tickets, their steps, the suppression list and the certificate log. Takes a session, never commits."""

from calendar import monthrange
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from registry.errors import StateError, UnknownIdError
from registry.records import Ticket, TicketState
from registry.tables import (
    CertificateRow,
    RecordRow,
    ShardRow,
    StreamRow,
    SubjectRow,
    TicketRow,
    TicketStepRow,
    TicketTargetRow,
    now,
)


def due_date(received: datetime, days: int) -> datetime:
    return received + timedelta(days=days)


def extended_due_date(due: datetime, months: int = 2) -> datetime:
    """Add months the way Article 12(3) counts them: the same day, or the month's last day where it has none."""
    month = due.month - 1 + months
    year, month = due.year + month // 12, month % 12 + 1
    return due.replace(year=year, month=month, day=min(due.day, monthrange(year, month)[1]))


def open_ticket(session: Session, ticket: Ticket, targets: Iterable[tuple[str, str]], opened_by: str) -> Ticket:
    """Enter a ticket and suppress its targets in the same transaction: from here on they are dropped at ingest.

    `targets` are (kind, keyed hash) with kind 'subject' or 'record'. The stream's deletion epoch grows by one.
    """
    stream = session.get(StreamRow, ticket.stream)
    if stream is None:
        raise UnknownIdError("stream", ticket.stream)
    stream.epoch += 1
    session.add(
        TicketRow(
            ticket_id=ticket.ticket_id,
            stream=ticket.stream,
            state=ticket.state,
            epoch=stream.epoch,
            records=ticket.records,
            received_at=ticket.received_at,
            due_at=ticket.due_at,
            opened_by=opened_by,
        )
    )
    session.flush()
    session.add_all(
        TicketTargetRow(
            ticket_id=ticket.ticket_id, stream=ticket.stream, kind=kind, keyed_hash=keyed, epoch=stream.epoch
        )
        for kind, keyed in sorted(set(targets))
    )
    session.flush()
    return ticket


def get_ticket(session: Session, ticket_id: str) -> Ticket:
    return _to_record(_row(session, ticket_id))


def tickets(session: Session, stream: str | None = None, *states: TicketState) -> list[Ticket]:
    query = select(TicketRow).order_by(TicketRow.received_at, TicketRow.ticket_id)
    if stream is not None:
        query = query.where(TicketRow.stream == stream)
    if states:
        query = query.where(TicketRow.state.in_(states))
    return [_to_record(row) for row in session.scalars(query)]


def set_ticket_state(session: Session, ticket_id: str, state: TicketState, note: str = "") -> None:
    row = _row(session, ticket_id)
    if row.state == TicketState.COMPLETE and state != TicketState.COMPLETE:
        raise StateError(f"ticket {ticket_id!r} is complete and cannot become {state}")
    row.state, row.note = state, note
    if state in (TicketState.COMPLETE, TicketState.EXCEPTION):
        row.closed_at = now()


def set_records(session: Session, ticket_id: str, records: int) -> None:
    _row(session, ticket_id).records = records


def ticket_epoch(session: Session, ticket_id: str) -> int:
    return _row(session, ticket_id).epoch


def targets_of(session: Session, ticket_id: str) -> list[tuple[str, str]]:
    query = select(TicketTargetRow).where(TicketTargetRow.ticket_id == ticket_id)
    return [(t.kind, t.keyed_hash) for t in session.scalars(query.order_by(TicketTargetRow.keyed_hash))]


def suppressed(session: Session, stream: str) -> dict[str, set[str]]:
    """The suppression list of a stream: kind -> keyed hashes."""
    found: dict[str, set[str]] = {"subject": set(), "record": set()}
    for target in session.scalars(select(TicketTargetRow).where(TicketTargetRow.stream == stream)):
        found.setdefault(target.kind, set()).add(target.keyed_hash)
    return found


def done_step(session: Session, ticket_id: str, step: str) -> dict[str, Any] | None:
    """What a finished step recorded, or None while it is to be done."""
    row = session.get(TicketStepRow, (ticket_id, step))
    return None if row is None else row.detail


def finish_step(session: Session, ticket_id: str, step: str, detail: dict[str, Any], seconds: float) -> None:
    session.merge(TicketStepRow(ticket_id=ticket_id, step=step, detail=detail, seconds=seconds))


def steps_of(session: Session, ticket_id: str) -> list[TicketStepRow]:
    query = select(TicketStepRow).where(TicketStepRow.ticket_id == ticket_id)
    return list(session.scalars(query.order_by(TicketStepRow.finished_at)))


def forget_records(session: Session, keys: Sequence[int], remaining: dict[int, tuple[int, int, int]]) -> None:
    """Drop record rows, subjects without any, and set the shards' new (rows, held out, labelled) counts."""
    for start in range(0, len(keys), 500):
        these = RecordRow.key.in_(keys[start : start + 500])
        owners = list(session.scalars(select(RecordRow.subject_id).where(these).distinct()))
        session.execute(delete(RecordRow).where(these))
        left = select(RecordRow.key).where(RecordRow.subject_id == SubjectRow.subject_id).exists()
        session.execute(delete(SubjectRow).where(SubjectRow.subject_id.in_(owners), ~left))
    for shard_id, (rows, held_out, labelled) in remaining.items():
        shard = session.get_one(ShardRow, shard_id)
        shard.rows, shard.held_out, shard.labelled = rows, held_out, labelled
    session.flush()


def add_certificate(session: Session, ticket_id: str, sha256: str, previous: str, key: str) -> None:
    session.add(CertificateRow(ticket_id=ticket_id, sha256=sha256, previous=previous, key=key))
    _row(session, ticket_id).certificate_key = key
    session.flush()


def last_certificate(session: Session) -> str:
    """Digest of the newest certificate of this log; 64 zeros before the first."""
    newest = session.scalar(select(func.max(CertificateRow.ordinal)))
    return "0" * 64 if newest is None else session.get_one(CertificateRow, newest).sha256


def _row(session: Session, ticket_id: str) -> TicketRow:
    row = session.get(TicketRow, ticket_id)
    if row is None:
        known = ", ".join(t.ticket_id for t in tickets(session)[-5:])
        raise UnknownIdError("ticket", ticket_id, known)
    return row


def _to_record(row: TicketRow) -> Ticket:
    return Ticket(
        ticket_id=row.ticket_id,
        stream=row.stream,
        state=TicketState(row.state),
        received_at=row.received_at,
        due_at=row.due_at,
        records=row.records,
        certificate_key=row.certificate_key,
    )
