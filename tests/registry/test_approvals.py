"""A person's word is recorded with a name, once."""

from datetime import UTC, datetime

import pytest

from registry import approvals
from registry.errors import StateError, UnknownIdError
from registry.records import Gate, Request
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


def _fields(request: Request) -> dict:
    return {name: getattr(request, name) for name in Request.__dataclass_fields__}


def test_one_word_stands_for_every_gate():
    assert Gates(approval="always").approval.merge == Approval.ALWAYS
    assert Gates(approval={"erasure": "always"}).approval.promotion == Approval.NEVER
