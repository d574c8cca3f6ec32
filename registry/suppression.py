"""What must not come back: the targets of tickets in effect, and the blobs that their records shaped."""

from collections.abc import Collection, Iterable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from registry.records import TicketState
from registry.tables import CondemnedRow, TicketRow, TicketTargetRow, in_chunks

IN_EFFECT = (TicketState.APPROVED, TicketState.IN_PROGRESS, TicketState.COMPLETE, TicketState.EXCEPTION)


def suppressed(session: Session, stream: str) -> dict[str, set[str]]:
    """The suppression list of a stream: kind -> keyed hashes. It outlives the records: they may be delivered again."""
    found: dict[str, set[str]] = {"subject": set(), "record": set()}
    query = select(TicketTargetRow.kind, TicketTargetRow.keyed_hash).join(TicketRow)
    query = query.where(TicketTargetRow.stream == stream, TicketRow.state.in_(IN_EFFECT))
    for kind, keyed in session.execute(query):
        found.setdefault(kind, set()).add(keyed)
    return found


def condemn(session: Session, stream: str, ticket_id: str, digests: Iterable[str]) -> None:
    """From now on nothing that names one of these blobs is registered or promoted."""
    for sha256 in sorted(set(digests)):
        session.merge(CondemnedRow(stream=stream, sha256=sha256, ticket_id=ticket_id))
    session.flush()


def pardon(session: Session, stream: str, digests: Collection[str]) -> None:
    """Lift it from blobs of which it was shown that their bytes come out without the records as well."""
    for chunk in in_chunks(sorted(set(digests))):
        these = CondemnedRow.stream == stream, CondemnedRow.sha256.in_(chunk)
        session.execute(delete(CondemnedRow).where(*these))


def condemned(session: Session, stream: str, digests: Collection[str]) -> set[str]:
    """Those of the digests that are condemned."""
    found: set[str] = set()
    for chunk in in_chunks(sorted(set(digests))):
        query = select(CondemnedRow.sha256).where(CondemnedRow.stream == stream, CondemnedRow.sha256.in_(chunk))
        found.update(session.scalars(query))
    return found
