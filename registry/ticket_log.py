"""The audit log of tickets: what happened, by whom and when, each entry chained to the one before it."""

from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from registry.canonical import canonical_json
from registry.errors import TamperedLogError
from registry.tables import Base, TicketEventRow, TicketRow, now

BEGINNING = "0" * 64


def append(
    session: Session, ticket_id: str, kind: str, by: str, note: str = "", at: datetime | None = None
) -> TicketEventRow:
    """Enter an event; `kind` is the state that the ticket moved to, or what else was done to it."""
    session.flush()
    lock(session, TicketEventRow)
    last = session.scalar(select(TicketEventRow).order_by(TicketEventRow.event_id.desc()).limit(1))
    row = TicketEventRow(ticket_id=ticket_id, kind=str(kind), by=by, note=note, at=(at or now()).astimezone(UTC))
    row.previous = BEGINNING if last is None else last.sha256
    row.sha256 = digest(row)
    session.add(row)
    session.flush()
    return row


def events_of(session: Session, ticket_id: str) -> list[TicketEventRow]:
    query = select(TicketEventRow).where(TicketEventRow.ticket_id == ticket_id)
    return list(session.scalars(query.order_by(TicketEventRow.event_id)))


def newest_event(session: Session, stream: str) -> int:
    """Number of the last entry about a ticket of the stream; 0 where it never had one."""
    query = select(func.max(TicketEventRow.event_id)).join(TicketRow, TicketRow.ticket_id == TicketEventRow.ticket_id)
    return session.scalar(query.where(TicketRow.stream == stream)) or 0


def check(session: Session) -> tuple[int, str]:
    """(entries, digest of the last one). Raises TamperedLogError naming the first entry that does not follow.

    Entries cut off at the end show by comparison with a digest kept elsewhere: certificates hold one."""
    return check_chain(session.scalars(select(TicketEventRow).order_by(TicketEventRow.event_id)))


def check_chain(rows: Iterable[TicketEventRow]) -> tuple[int, str]:
    count, previous = 0, BEGINNING
    for row in rows:
        if row.previous != previous or row.sha256 != digest(row):
            raise TamperedLogError(
                f"entry {row.event_id} of the ticket log (ticket {row.ticket_id}, {row.kind}) does not follow from the "
                "entries before it: one of them was changed, taken out or put in; compare with a backup"
            )
        count, previous = count + 1, row.sha256
    return count, previous


def digest(row: TicketEventRow) -> str:
    entry = [row.previous, row.ticket_id, row.kind, row.by, row.note, row.at.astimezone(UTC).isoformat()]
    return sha256(canonical_json(entry)).hexdigest()


def lock(session: Session, table: type[Base]) -> None:
    """Writers of a chained table wait for each other. SQLite's transactions do so as they begin."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"lock table {table.__tablename__} in share row exclusive mode"))
