"""Requests for a person's word, and the answers. Takes the caller's session, never commits."""

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import StateError, UnknownIdError
from registry.records import Gate, Request
from registry.tables import RequestRow, now

ITSELF = "deciduous"
"""Who answered where a request ended because nothing was left to grant."""


def ask(session: Session, request: Request) -> Request:
    """Enter the request; one that was asked before keeps its time and its answer, unless it ended by itself."""
    row = session.get(RequestRow, request.request_id)
    if row is not None and _has_ended(row):
        session.delete(row)
        session.flush()
        row = None
    if row is None:
        row = RequestRow(
            request_id=request.request_id,
            stream=request.stream,
            gate=request.gate,
            what=request.what,
            reason=request.reason,
            due_at=request.due_at,
        )
        session.add(row)
        session.flush()
    return _to_record(row)


def get(session: Session, request_id: str) -> Request:
    return _to_record(_row(session, request_id))


def find(session: Session, request_id: str) -> Request | None:
    """None where nobody was asked, or the request ended by itself: `ask` asks anew."""
    row = session.get(RequestRow, request_id)
    return None if row is None or _has_ended(row) else _to_record(row)


def answer(session: Session, request_id: str, approved: bool, approver: str, note: str = "") -> Request:
    """Record a person's word. Raises StateError without a name, and for a request that was answered otherwise."""
    row = _row(session, request_id, lock=True)
    known = _to_record(row)
    if not approver.strip():
        raise StateError(f"request {request_id} needs the approver's name")
    if known.approved is not None:
        if known.approved == approved:
            return known
        word = "approved" if known.approved else "refused"
        why = f": {known.note}" if known.note else ""
        raise StateError(f"request {request_id} was {word} by {known.approver} already{why}")
    row.approved, row.approver, row.note, row.answered_at = approved, approver.strip(), note, now()
    session.flush()
    return _to_record(row)


def end(session: Session, stream: str, gate: Gate, is_over: Callable[[str], bool], why: str) -> None:
    """Let what waits at a gate wait no more where it can be granted no more."""
    query = select(RequestRow).where(RequestRow.stream == stream, RequestRow.gate == gate)
    for row in session.scalars(query.where(RequestRow.approved.is_(None))):
        if is_over(row.what):
            row.approved, row.approver, row.note, row.answered_at = False, ITSELF, why, now()
    session.flush()


def requests(session: Session, stream: str, *, waiting: bool = False) -> list[Request]:
    query = select(RequestRow).where(RequestRow.stream == stream).order_by(RequestRow.asked_at)
    if waiting:
        query = query.where(RequestRow.approved.is_(None))
    return [_to_record(row) for row in session.scalars(query)]


def _has_ended(row: RequestRow) -> bool:
    return row.approved is False and row.approver == ITSELF


def _row(session: Session, request_id: str, lock: bool = False) -> RequestRow:
    """With `lock`, as it is now, and nobody else answers it before this transaction ends."""
    row = session.get(RequestRow, request_id, with_for_update=lock or None, populate_existing=lock)
    if row is None:
        known = ", ".join(session.scalars(select(RequestRow.request_id).where(RequestRow.approved.is_(None)).limit(5)))
        raise UnknownIdError("approval request", request_id, known)
    return row


def _to_record(row: RequestRow) -> Request:
    return Request(
        request_id=row.request_id,
        stream=row.stream,
        gate=Gate(row.gate),
        what=row.what,
        reason=row.reason,
        due_at=row.due_at,
        approved=row.approved,
        approver=row.approver,
        note=row.note,
    )
