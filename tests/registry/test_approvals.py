"""A person's word is recorded with a name, once."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from registry import adapters, approvals
from registry.errors import StateError, UnknownIdError
from registry.records import Adapter, AdapterState, Gate, Request
from registry.sections import Approval, Gates

REQUEST = Request(
    "promotion:mail/4", "mail", Gate.PROMOTION, "mail/4", "accuracy -0.050", datetime(2026, 1, 1, tzinfo=UTC)
)


def test_a_request_keeps_its_first_reason_and_takes_one_answer(session):
    first = approvals.ask(session, REQUEST)
    again = approvals.ask(session, Request(**{**_fields(REQUEST), "reason": "another"}))
    assert (first.reason, again.reason) == ("accuracy -0.050", "accuracy -0.050")
    assert [r.request_id for r in approvals.requests(session, "mail", waiting=True)] == ["promotion:mail/4"]
    with pytest.raises(StateError, match="needs the approver's name"):
        approvals.answer(session, "promotion:mail/4", True, "  ")
    answered = approvals.answer(session, "promotion:mail/4", True, " Ann ", "seen")
    assert (answered.approved, answered.approver, answered.note) == (True, "Ann", "seen")
    assert approvals.answer(session, "promotion:mail/4", True, "Bob").approver == "Ann"
    with pytest.raises(StateError, match="approved by Ann already"):
        approvals.answer(session, "promotion:mail/4", False, "Bob")
    assert approvals.requests(session, "mail", waiting=True) == []
    with pytest.raises(UnknownIdError):
        approvals.get(session, "promotion:mail/5")


def test_what_ended_by_itself_is_asked_anew(session):
    approvals.ask(session, REQUEST)
    approvals.end(session, "mail", Gate.MERGE, lambda _: True, "another gate's")
    approvals.end(session, "mail", Gate.PROMOTION, lambda what: what == "mail/4", "version 5 is champion")
    assert approvals.requests(session, "mail", waiting=True) == []
    with pytest.raises(StateError, match="refused by deciduous already: version 5 is champion"):
        approvals.answer(session, "promotion:mail/4", True, "Ann")
    assert approvals.find(session, "promotion:mail/4") is None
    assert approvals.ask(session, REQUEST).approved is None
    approvals.answer(session, "promotion:mail/4", False, "Ann")
    assert approvals.ask(session, REQUEST).approver == "Ann", "a person's word stays"


def test_a_merge_of_an_adapter_that_is_gone_waits_for_nobody(session):
    for name in ("mail-a1", "mail-a2", "mail-a11"):
        adapters.put_adapter(session, Adapter(name, "mail", "g", AdapterState.SERVING, ()))
    for what in ("mail-a1+mail-a2", "mail-a2+mail-a11"):
        approvals.ask(session, replace(REQUEST, request_id=f"merge:{what}", gate=Gate.MERGE, what=what))
    adapters.move_adapter(session, "mail-a1", AdapterState.CANDIDATE, "judged")
    assert len(approvals.requests(session, "mail", waiting=True)) == 2
    adapters.move_adapter(session, "mail-a1", AdapterState.RETIRED, "the season is over")
    assert [r.what for r in approvals.requests(session, "mail", waiting=True)] == ["mail-a2+mail-a11"]
    assert approvals.get(session, "merge:mail-a1+mail-a2").note == "mail-a1 is retired: the season is over"


def _fields(request: Request) -> dict:
    return {name: getattr(request, name) for name in Request.__dataclass_fields__}


def test_one_word_stands_for_every_gate():
    assert Gates(approval="always").approval.merge == Approval.ALWAYS
    assert Gates(approval={"erasure": "always"}).approval.promotion == Approval.NEVER
