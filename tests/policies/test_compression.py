import pytest

from tasks.policies.compression import form_holds


@pytest.mark.parametrize(("accuracy", "passed"), [(0.9, True), (0.89, True), (0.88, False), (0.95, True)])
def test_a_form_holds_while_it_loses_no_more_than_the_gate(accuracy, passed):
    verdict = form_holds(accuracy, 0.9, 100, 0.01)
    assert verdict.passed is passed
    word = "holds" if passed else "loses too much"
    assert verdict.reason == f"{word}: {accuracy:.3f} against 0.900 whole, 100 held-out rows (gate 0.01)"
