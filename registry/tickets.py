"""Deletion tickets: their states, due dates, steps and certificates. Takes a session, never commits.

A ticket takes effect when it is approved: from then on ingest drops its targets (`registry.suppression`), and work that
began under the deletion epoch before is refused.
"""

from calendar import monthrange
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from registry import contents, ticket_log
from registry.errors import StateError, UnknownIdError
from registry.records import Ticket, TicketState
from registry.tables import (
    CertificateRow,
    RecordRow,
    ShardRow,
    StreamRow,
    TicketRow,
    TicketStepRow,
    TicketTargetRow,
    in_chunks,
    now,
)

EXTENDED = "extended"

CERTIFY = "certify"
"""Noted under each ticket; the steps before it under the ticket that leads the batch."""

WAITING = (TicketState.RECEIVED, TicketState.VERIFIED)
WORKED = (TicketState.APPROVED, TicketState.IN_PROGRESS)
OPEN = (*WAITING, *WORKED, TicketState.EXCEPTION)
CLOSED = (TicketState.COMPLETE, TicketState.EXCEPTION, TicketState.DENIED)

_MOVES = {
    TicketState.RECEIVED: {TicketState.VERIFIED, TicketState.APPROVED, TicketState.DENIED},
    TicketState.VERIFIED: {TicketState.APPROVED, TicketState.DENIED},
    TicketState.APPROVED: {TicketState.IN_PROGRESS},
    TicketState.IN_PROGRESS: {TicketState.COMPLETE, TicketState.EXCEPTION},
    TicketState.EXCEPTION: {TicketState.APPROVED},
    TicketState.COMPLETE: set(),
    TicketState.DENIED: set(),
}


def due_date(received: datetime, days: int) -> datetime:
    """So many days after receipt, and never later than one month after it (Article 12(3))."""
    month = add_months(received, 1)
    return min(received + timedelta(days=days), month) if days < 31 else month


def extended_due_date(due: datetime) -> datetime:
    return add_months(due, 2)


def add_months(moment: datetime, months: int) -> datetime:
    """The way Article 12(3) counts them: the same day, or the month's last day where it has none."""
    month = moment.month - 1 + months
    year, month = moment.year + month // 12, month % 12 + 1
    return moment.replace(year=year, month=month, day=min(moment.day, monthrange(year, month)[1]))


def open_ticket(session: Session, ticket: Ticket, targets: Iterable[tuple[str, str]], opened_by: str) -> Ticket:
    """Enter a ticket, RECEIVED: nothing happens before it is approved.

    `targets` are (kind, keyed hash) with kind 'subject' or 'record'.
    """
    epoch = _stream(session, ticket.stream).epoch
    session.add(
        TicketRow(
            ticket_id=ticket.ticket_id,
            stream=ticket.stream,
            state=TicketState.RECEIVED,
            epoch=epoch,
            records=ticket.records,
            received_at=ticket.received_at,
            due_at=ticket.due_at,
            opened_by=opened_by,
        )
    )
    session.flush()
    session.add_all(
        TicketTargetRow(ticket_id=ticket.ticket_id, stream=ticket.stream, kind=kind, keyed_hash=keyed, epoch=epoch)
        for kind, keyed in sorted(set(targets))
    )
    session.flush()
    ticket_log.append(session, ticket.ticket_id, TicketState.RECEIVED, opened_by, at=ticket.received_at)
    return get_ticket(session, ticket.ticket_id)


def verify_identity(session: Session, ticket_id: str, by: str, note: str = "") -> Ticket:
    """Note that somebody checked who asks. Raises StateError for a ticket that is past that."""
    return set_ticket_state(session, ticket_id, TicketState.VERIFIED, note, by)


def approve(session: Session, ticket_id: str, by: str, note: str = "", at: datetime | None = None) -> Ticket:
    """Let the ticket take effect: its targets are suppressed, and the stream's deletion epoch grows by one.

    Raises StateError for a ticket that is past that. Withdraw what its records shaped in the same transaction
    (`tasks.tickets.approve_ticket` does)."""
    ticket = set_ticket_state(session, ticket_id, TicketState.APPROVED, note, by, at)
    stream = _stream(session, ticket.stream)
    stream.epoch += 1
    _row(session, ticket_id).epoch = stream.epoch
    targets = update(TicketTargetRow).where(TicketTargetRow.ticket_id == ticket_id)
    session.execute(targets.values(epoch=stream.epoch))
    session.flush()
    return ticket


def deny(session: Session, ticket_id: str, by: str, reason: str) -> Ticket:
    """Refuse a ticket before it took effect; the reason is kept."""
    return set_ticket_state(session, ticket_id, TicketState.DENIED, reason, by)


def extend(session: Session, ticket_id: str, by: str, reason: str, at: datetime | None = None) -> Ticket:
    """Move the due date by two months, once, before it has passed (Article 12(3)). Raises StateError otherwise."""
    row, moment = _row(session, ticket_id, lock=True), at or now()
    if TicketState(row.state) not in OPEN:
        raise StateError(f"ticket {ticket_id!r} is {row.state}; only an open ticket is extended")
    if any(event.kind == EXTENDED for event in ticket_log.events_of(session, ticket_id)):
        raise StateError(f"ticket {ticket_id!r} was extended before; the law knows one extension")
    if moment > row.due_at:
        raise StateError(f"ticket {ticket_id!r} was due {row.due_at:%Y-%m-%d}; an extension is told before that day")
    row.due_at = extended_due_date(row.due_at)
    ticket_log.append(session, ticket_id, EXTENDED, by, reason, moment)
    return _to_record(row)


def reopen(session: Session, ticket_id: str, by: str, reason: str, redo: Iterable[str]) -> list[Ticket]:
    """Take an exception up again, with those that were worked with it: these steps are to be done anew. What is
    complete stays so, also where the others' steps are noted under it."""
    lead = _row(session, ticket_id).lead or ticket_id
    left = [t.ticket_id for t in worked_with(session, lead) if t.state == TicketState.EXCEPTION]
    again = {ticket_id, *left}
    for each in sorted(again):
        set_ticket_state(session, each, TicketState.APPROVED, reason, by)
        set_ticket_state(session, each, TicketState.IN_PROGRESS, "", by)
    steps = delete(TicketStepRow).where(_noted_for(again, lead))
    session.execute(steps.where(TicketStepRow.step.in_(list(redo))))
    return worked_with(session, lead)


def get_ticket(session: Session, ticket_id: str) -> Ticket:
    return _to_record(_row(session, ticket_id))


def tickets(session: Session, stream: str | None = None, *states: TicketState) -> list[Ticket]:
    query = select(TicketRow).order_by(TicketRow.received_at, TicketRow.ticket_id)
    if stream is not None:
        query = query.where(TicketRow.stream == stream)
    if states:
        query = query.where(TicketRow.state.in_(states))
    return [_to_record(row) for row in session.scalars(query)]


def overdue(session: Session, moment: datetime, stream: str | None = None) -> list[Ticket]:
    """Open tickets whose due date has passed, the longest overdue first."""
    return sorted((t for t in tickets(session, stream, *OPEN) if t.due_at < moment), key=lambda t: t.due_at)


def take_together(session: Session, ticket_ids: Sequence[str], by: str) -> list[Ticket]:
    """Begin work on approved tickets as one batch: their steps are noted under the first."""
    for ticket_id in ticket_ids:
        _row(session, ticket_id).lead = ticket_ids[0]
        set_ticket_state(session, ticket_id, TicketState.IN_PROGRESS, "", by)
    return worked_with(session, ticket_ids[0])


def worked_with(session: Session, lead: str) -> list[Ticket]:
    """The tickets whose steps are noted under this one, itself first."""
    rows = session.scalars(select(TicketRow).where(TicketRow.lead == lead))
    return sorted(map(_to_record, rows), key=lambda t: (t.ticket_id != lead, t.received_at, t.ticket_id))


def set_ticket_state(
    session: Session, ticket_id: str, state: TicketState, note: str, by: str, at: datetime | None = None
) -> Ticket:
    """Move a ticket and enter it in the log. Raises StateError for a move that cannot be."""
    row = _row(session, ticket_id, lock=True)
    if state not in _MOVES[TicketState(row.state)]:
        told = f"is {row.state} and cannot become {state}" if row.state != state else f"is {state} already"
        raise StateError(f"ticket {ticket_id!r} {told}")
    row.state, row.note = state, note
    row.closed_at = now() if state in CLOSED else None
    ticket_log.append(session, ticket_id, state, by, note, at)
    return _to_record(row)


def set_records(session: Session, ticket_id: str, records: int) -> None:
    _row(session, ticket_id).records = records


def ticket_epoch(session: Session, ticket_id: str) -> int:
    return _row(session, ticket_id).epoch


def targets_of(session: Session, *ticket_ids: str) -> list[tuple[str, str]]:
    """(kind, keyed hash) of what these tickets ask to forget."""
    query = select(TicketTargetRow).where(TicketTargetRow.ticket_id.in_(ticket_ids))
    return [(t.kind, t.keyed_hash) for t in session.scalars(query.order_by(TicketTargetRow.keyed_hash))]


def done_step(session: Session, ticket_id: str, step: str) -> dict[str, Any] | None:
    """What a finished step recorded, or None while it is to be done."""
    row = session.get(TicketStepRow, (ticket_id, step))
    return None if row is None else row.detail


def finish_step(session: Session, ticket_id: str, step: str, detail: dict[str, Any], seconds: float) -> None:
    session.merge(TicketStepRow(ticket_id=ticket_id, step=step, detail=detail, seconds=seconds))


def steps_of(session: Session, ticket_id: str) -> list[TicketStepRow]:
    """The finished steps of a ticket, also where they are noted under the ticket that leads its batch."""
    lead = _row(session, ticket_id).lead or ticket_id
    query = select(TicketStepRow).where(_noted_for({ticket_id}, lead))
    noted = {row.step: row for row in session.scalars(query.order_by(TicketStepRow.ticket_id != lead))}
    return sorted(noted.values(), key=lambda row: row.finished_at)


def _noted_for(ticket_ids: Collection[str], lead: str) -> ColumnElement[bool]:
    """The steps of these tickets, and what they share with the one that leads them."""
    shared = and_(TicketStepRow.ticket_id == lead, TicketStepRow.step != CERTIFY)
    return or_(TicketStepRow.ticket_id.in_(ticket_ids), shared)


def forget_records(session: Session, keys: Sequence[int], remaining: dict[int, tuple[int, int, int]]) -> None:
    """Drop record rows, subjects without any, and set the shards' new (rows, held out, labelled) counts."""
    for chunk in in_chunks(keys):
        these = RecordRow.key.in_(chunk)
        owners = list(session.scalars(select(RecordRow.subject_id).where(these).distinct()))
        session.execute(delete(RecordRow).where(these))
        contents.drop_subjects(session, owners)
    for shard_id, (rows, held_out, labelled) in remaining.items():
        shard = session.get_one(ShardRow, shard_id)
        shard.rows, shard.held_out, shard.labelled = rows, held_out, labelled
    session.flush()


def add_certificate(session: Session, ticket_id: str, sha256: str, previous: str, key: str) -> None:
    session.add(CertificateRow(ticket_id=ticket_id, sha256=sha256, previous=previous, key=key))
    _row(session, ticket_id).certificate_key = key
    session.flush()


def last_certificate(session: Session) -> str:
    """Digest of the newest certificate of this log; 64 zeros before the first. Whoever asks next waits for the end of
    this transaction: the chain does not fork."""
    ticket_log.lock(session, CertificateRow)
    newest = session.scalar(select(func.max(CertificateRow.ordinal)))
    return ticket_log.BEGINNING if newest is None else session.get_one(CertificateRow, newest).sha256


def certificates(session: Session) -> list[tuple[str, str]]:
    """(ticket id, digest) of every certificate, in the order of the chain."""
    query = select(CertificateRow.ticket_id, CertificateRow.sha256).order_by(CertificateRow.ordinal)
    return list(session.execute(query).tuples())


def _stream(session: Session, name: str) -> StreamRow:
    """The stream's row, locked: a batch that is being entered waits, or is seen."""
    stream = session.get(StreamRow, name, with_for_update=True)
    if stream is None:
        raise UnknownIdError("stream", name)
    return stream


def _row(session: Session, ticket_id: str, lock: bool = False) -> TicketRow:
    """With `lock`, as it is now, and nobody else moves the ticket before this transaction ends."""
    row = session.get(TicketRow, ticket_id, with_for_update=lock or None, populate_existing=lock)
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
        note=row.note,
        lead=row.lead,
    )
