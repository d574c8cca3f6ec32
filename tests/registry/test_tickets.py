from datetime import UTC, datetime

import pytest

from registry import tickets
from registry.errors import StateError
from registry.records import Ticket, TicketState


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("due", "extended"),
    [
        ("2026-12-31", "2027-02-28"),
        ("2027-12-31", "2028-02-29"),
        ("2026-06-30", "2026-08-30"),
        ("2026-11-15", "2027-01-15"),
    ],
)
def test_an_extension_ends_on_the_same_day_or_the_months_last(due, extended):
    assert tickets.extended_due_date(moment(due)) == moment(extended)


def test_opening_suppresses_and_raises_the_epoch(session):
    ticket = Ticket("t-1", "mail", TicketState.RECEIVED, moment("2026-11-01"), moment("2026-12-01"), 0)
    tickets.open_ticket(session, ticket, [("subject", "aa"), ("record", "bb"), ("subject", "aa")], "ann")
    assert tickets.suppressed(session, "mail") == {"subject": {"aa"}, "record": {"bb"}}
    assert tickets.ticket_epoch(session, "t-1") == 1


def test_a_complete_ticket_stays_complete(session):
    ticket = Ticket("t-1", "mail", TicketState.RECEIVED, moment("2026-11-01"), moment("2026-12-01"), 0)
    tickets.open_ticket(session, ticket, [("record", "bb")], "ann")
    tickets.set_ticket_state(session, "t-1", TicketState.COMPLETE)
    with pytest.raises(StateError, match="cannot become"):
        tickets.set_ticket_state(session, "t-1", TicketState.IN_PROGRESS)
