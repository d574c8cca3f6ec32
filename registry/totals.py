"""Totals for monitoring, one aggregate query each: their cost does not grow with rows that are read into memory."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry.tables import AliasEventRow, BatchRow, DecisionRow, TicketRow, TicketStepRow
from registry.tickets import OPEN
from registry.versions import CHAMPION

Totals = Sequence[tuple[tuple[str, ...], float]]
"""(label values, value)."""


def batches(session: Session) -> Totals:
    """By stream and state."""
    query = select(BatchRow.stream, BatchRow.state, func.count()).group_by(BatchRow.stream, BatchRow.state)
    return [((stream, state), n) for stream, state, n in session.execute(query)]


def rows(session: Session) -> Totals:
    """By stream and what became of them: accepted, quarantined, suppressed."""
    sums = [func.sum(BatchRow.rows), func.sum(BatchRow.quarantined), func.sum(BatchRow.suppressed)]
    found = session.execute(select(BatchRow.stream, *sums).group_by(BatchRow.stream)).all()
    names = ("accepted", "quarantined", "suppressed")
    return [((stream, name), n) for stream, *each in found for name, n in zip(names, each, strict=True)]


def decisions(session: Session) -> Totals:
    """By stream and kind."""
    query = select(DecisionRow.stream, DecisionRow.kind, func.count()).group_by(DecisionRow.stream, DecisionRow.kind)
    return [((stream, kind), n) for stream, kind, n in session.execute(query)]


def tickets(session: Session) -> Totals:
    """By stream and state."""
    query = select(TicketRow.stream, TicketRow.state, func.count()).group_by(TicketRow.stream, TicketRow.state)
    return [((stream, state), n) for stream, state, n in session.execute(query)]


def overdue(session: Session, moment: datetime) -> Totals:
    """Open tickets by stream whose due date has passed."""
    query = select(TicketRow.stream, func.count()).where(TicketRow.state.in_(OPEN), TicketRow.due_at < moment)
    return [((stream,), n) for stream, n in session.execute(query.group_by(TicketRow.stream))]


def champion_since(session: Session) -> dict[str, datetime]:
    """When each stream's champion last moved."""
    query = select(AliasEventRow.stream, func.max(AliasEventRow.at)).where(AliasEventRow.alias == CHAMPION)
    return dict(session.execute(query.group_by(AliasEventRow.stream)).tuples().all())


def ticket_seconds(session: Session) -> Totals:
    """Seconds that tickets spent, by step."""
    query = select(TicketStepRow.step, func.sum(TicketStepRow.seconds)).group_by(TicketStepRow.step)
    return [((step,), seconds) for step, seconds in session.execute(query)]
