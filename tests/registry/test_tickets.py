from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from registry import catalog, suppression, ticket_log, tickets
from registry.errors import StateError, TamperedLogError
from registry.records import Ticket, TicketState
from registry.tables import TicketEventRow


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


@pytest.mark.parametrize(
    ("received", "due"),
    [
        ("2026-01-31", "2026-02-28"),
        ("2028-01-31", "2028-02-29"),
        ("2026-01-28", "2026-02-27"),
        ("2027-02-01", "2027-03-01"),
        ("2026-12-31", "2027-01-30"),
        ("2026-11-01", "2026-12-01"),
    ],
)
def test_a_ticket_is_due_after_thirty_days_or_a_shorter_month(received, due):
    assert tickets.due_date(moment(received), 30) == moment(due)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), st.integers(1, 1_000_000_000_000))
def test_no_ticket_is_due_after_a_month_nor_extended_beyond_three(received, days):
    due = tickets.due_date(received, days)
    assert received < due <= tickets.add_months(received, 1) < received + timedelta(days=32)
    assert due < tickets.extended_due_date(due) <= tickets.add_months(received, 3)


def open_ticket(session, name: str = "t-1", targets=(("record", "bb"),), received: str = "2026-11-01"):
    due = tickets.due_date(moment(received), 30)
    ticket = Ticket(name, "mail", TicketState.RECEIVED, moment(received), due, 0)
    return tickets.open_ticket(session, ticket, targets, "ann")


def test_a_moment_of_another_zone_is_the_same_moment_when_it_is_read(session):
    received = datetime.fromisoformat("2026-11-01T13:00:00+13:00")  # as a journal of a server elsewhere has it
    tickets.open_ticket(session, Ticket("t-1", "mail", TicketState.RECEIVED, received, received, 0), [], "ann")
    session.expire_all()
    assert tickets.get_ticket(session, "t-1").received_at.isoformat() == "2026-11-01T00:00:00+00:00"


def test_a_ticket_takes_effect_when_it_is_approved(session):
    open_ticket(session, targets=[("subject", "aa"), ("record", "bb"), ("subject", "aa")])
    assert suppression.suppressed(session, "mail") == {"subject": set(), "record": set()}
    tickets.verify_identity(session, "t-1", "ann")
    with pytest.raises(StateError, match="'t-1' is verified already"):
        tickets.verify_identity(session, "t-1", "bo")
    tickets.approve(session, "t-1", "bo")
    assert suppression.suppressed(session, "mail") == {"subject": {"aa"}, "record": {"bb"}}
    assert tickets.ticket_epoch(session, "t-1") == catalog.stream_epoch(session, "mail") == 1


def test_a_denied_ticket_never_takes_effect(session):
    open_ticket(session)
    assert tickets.deny(session, "t-1", "ann", "not the person").note == "not the person"
    assert suppression.suppressed(session, "mail")["record"] == set()
    with pytest.raises(StateError, match="denied and cannot become"):
        tickets.approve(session, "t-1", "bo")


def test_states_are_left_in_order_and_logged(session):
    open_ticket(session)
    with pytest.raises(StateError, match="received and cannot become"):
        tickets.set_ticket_state(session, "t-1", TicketState.COMPLETE, "", "ann")
    tickets.approve(session, "t-1", "bo", at=moment("2026-11-03"))
    (taken,) = tickets.take_together(session, ["t-1"], "cy")
    assert (taken.state, taken.lead) == (TicketState.IN_PROGRESS, "t-1")
    tickets.set_ticket_state(session, "t-1", TicketState.COMPLETE, "", "cy")
    with pytest.raises(StateError, match="complete and cannot become"):
        tickets.set_ticket_state(session, "t-1", TicketState.IN_PROGRESS, "", "cy")
    history = [(e.kind, e.by) for e in ticket_log.events_of(session, "t-1")]
    assert history == [("received", "ann"), ("approved", "bo"), ("in_progress", "cy"), ("complete", "cy")]
    assert ticket_log.events_of(session, "t-1")[1].at == moment("2026-11-03")


def test_tickets_that_are_worked_together_share_their_steps(session):
    for name in ("t-1", "t-2", "t-3"):
        open_ticket(session, name)
    for name in ("t-1", "t-2"):
        tickets.approve(session, name, "bo")
    together = tickets.take_together(session, ["t-2", "t-1"], "cy")
    assert [ticket.ticket_id for ticket in together] == ["t-2", "t-1"]
    tickets.finish_step(session, "t-2", "resolve", {"shards": [1]}, 0.1)
    tickets.finish_step(session, "t-1", "certify", {}, 0.1)
    tickets.finish_step(session, "t-2", "certify", {}, 0.1)
    assert [row.step for row in tickets.steps_of(session, "t-1")] == ["resolve", "certify"]
    assert tickets.steps_of(session, "t-3") == []


def test_an_exception_is_reopened_with_the_tickets_beside_it(session):
    for name in ("t-1", "t-2"):
        open_ticket(session, name)
        tickets.approve(session, name, "bo")
    tickets.take_together(session, ["t-1", "t-2"], "cy")
    for name in ("t-1", "t-2"):
        tickets.finish_step(session, name, "certify", {}, 0.1)
        tickets.set_ticket_state(session, name, TicketState.EXCEPTION, "a legal hold", "cy")
    tickets.finish_step(session, "t-1", "resolve", {}, 0.1)
    again = tickets.reopen(session, "t-2", "ann", "the hold was lifted", ["certify"])
    assert [(t.ticket_id, t.state) for t in again] == [(n, TicketState.IN_PROGRESS) for n in ("t-1", "t-2")]
    assert [row.step for row in tickets.steps_of(session, "t-2")] == ["resolve"]


@pytest.mark.parametrize("complete", ["t-1", "t-2"])
def test_an_exception_is_reopened_beside_a_ticket_that_is_complete(session, complete):
    """Whichever of the two leads: the complete one keeps its state and its certificate's note."""
    for name in ("t-1", "t-2"):
        open_ticket(session, name)
        tickets.approve(session, name, "bo")
    tickets.take_together(session, ["t-1", "t-2"], "cy")
    (left,) = {"t-1", "t-2"} - {complete}
    for name, step in [("t-1", "resolve"), ("t-1", "purge"), ("t-1", "certify"), ("t-2", "certify")]:
        tickets.finish_step(session, name, step, {}, 0.1)
    tickets.set_ticket_state(session, complete, TicketState.COMPLETE, "", "cy")
    tickets.set_ticket_state(session, left, TicketState.EXCEPTION, "an alarm", "cy")
    again = tickets.reopen(session, left, "ann", "somebody looked", ["purge", "certify"])
    assert [t.ticket_id for t in again] == ["t-1", "t-2"]  # the lead comes first: the steps are noted under it
    assert {t.ticket_id: t.state for t in again} == {complete: TicketState.COMPLETE, left: TicketState.IN_PROGRESS}
    assert [row.step for row in tickets.steps_of(session, left)] == ["resolve"]
    assert [row.step for row in tickets.steps_of(session, complete)] == ["resolve", "certify"]
    with pytest.raises(StateError, match="complete and cannot become approved"):
        tickets.reopen(session, complete, "ann", "once more", ["certify"])


def test_an_extension_is_given_once_and_in_time(session):
    open_ticket(session, received="2026-12-01")
    assert tickets.extend(session, "t-1", "ann", "complex", moment("2026-12-31")).due_at == moment("2027-02-28")
    with pytest.raises(StateError, match="extended before"):
        tickets.extend(session, "t-1", "ann", "again", moment("2027-01-01"))
    open_ticket(session, "t-2")
    with pytest.raises(StateError, match="was due 2026-12-01"):
        tickets.extend(session, "t-2", "ann", "too late", moment("2026-12-02"))
    tickets.deny(session, "t-2", "ann", "no")
    with pytest.raises(StateError, match="only an open ticket"):
        tickets.extend(session, "t-2", "ann", "closed", moment("2026-11-02"))


def test_overdue_are_open_tickets_past_their_day_the_longest_first(session):
    for name, received in (("t-late", "2026-10-01"), ("t-later", "2026-09-01"), ("t-done", "2026-08-01")):
        open_ticket(session, name, received=received)
    open_ticket(session, "t-young", received="2026-11-20")
    tickets.deny(session, "t-done", "ann", "no")
    found = tickets.overdue(session, moment("2026-11-21"))
    assert [ticket.ticket_id for ticket in found] == ["t-later", "t-late"]
    assert tickets.overdue(session, moment("2026-10-01")) == []  # due on that day is not overdue


@pytest.mark.parametrize("attack", ["change", "take out", "put in", "swap"])
def test_the_log_shows_any_attack(session, attack):
    for name in ("t-1", "t-2", "t-3"):
        open_ticket(session, name)
    count, head = ticket_log.check(session)
    assert (count, len(head)) == (3, 64)
    rows = list(session.scalars(select(TicketEventRow).order_by(TicketEventRow.event_id)))
    if attack == "change":
        rows[1].by = "somebody else"
    elif attack == "take out":
        session.delete(rows[1])
    elif attack == "put in":
        session.add(
            TicketEventRow(
                ticket_id="t-1", kind="approved", by="x", note="", at=rows[0].at, previous=head, sha256="0" * 64
            )
        )
    else:
        rows[0].ticket_id, rows[1].ticket_id = "t-2", "t-1"
    session.flush()
    with pytest.raises(TamperedLogError, match="does not follow"):
        ticket_log.check(session)


def test_a_cut_tail_shows_by_the_digest_that_a_certificate_holds(session):
    for name in ("t-1", "t-2"):
        open_ticket(session, name)
    _, head = ticket_log.check(session)
    last = session.scalars(select(TicketEventRow).order_by(TicketEventRow.event_id.desc())).first()
    session.delete(last)
    session.flush()
    assert ticket_log.check(session)[1] != head


def test_what_is_condemned_stays_so_until_it_is_pardoned(session):
    open_ticket(session)
    suppression.condemn(session, "mail", "t-1", ["a", "b", "a"])
    assert suppression.condemned(session, "mail", {"a", "c"}) == {"a"}
    assert suppression.condemned(session, "other", {"a"}) == set()
    suppression.pardon(session, "mail", {"a", "c"})
    assert suppression.condemned(session, "mail", {"a", "b"}) == {"b"}
