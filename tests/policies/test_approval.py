import pytest

from registry.sections import Approval
from tasks.policies.approval import asks_person


@pytest.mark.parametrize(
    ("mode", "regressed", "asks"),
    [
        (Approval.NEVER, True, False),
        (Approval.ALWAYS, False, True),
        (Approval.ON_REGRESSION, True, True),
        (Approval.ON_REGRESSION, False, False),
    ],
)
def test_a_gate_asks_always_never_or_where_something_gets_worse(mode, regressed, asks):
    assert asks_person(mode, regressed) is asks
