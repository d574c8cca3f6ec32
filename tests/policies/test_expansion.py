import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.records import Decision, DecisionKind, ShiftEvidence
from tasks.policies.expansion import ShiftRule, binomial_tail, choose_expansion, refine_reuse

RULE = ShiftRule(alpha=0.01, min_rows=40, refresh_drop=0.05)


def evidence(**p_values: float) -> list[ShiftEvidence]:
    return [ShiftEvidence(name, p, 0.1, {"9": 1.0}) for name, p in p_values.items()]


@pytest.mark.parametrize(
    ("p_values", "labelled", "kind", "adapter"),
    [
        pytest.param({}, 100, DecisionKind.EXPAND, None, id="first batch ever"),
        pytest.param({"a": 0.5}, 100, DecisionKind.REUSE, "a", id="explained"),
        pytest.param({"a": 0.2, "b": 0.6}, 100, DecisionKind.REUSE, "b", id="closest wins"),
        pytest.param({"b": 0.5, "a": 0.5}, 100, DecisionKind.REUSE, "a", id="ties go by name"),
        pytest.param({"a": 0.01}, 100, DecisionKind.EXPAND, None, id="alpha itself rejects"),
        pytest.param({"a": 0.001}, 39, DecisionKind.HOLD, None, id="too few rows to train"),
        pytest.param({}, 39, DecisionKind.HOLD, None, id="too few rows to begin"),
        pytest.param({"a": 0.5}, 0, DecisionKind.HOLD, "a", id="no labels change nothing"),
    ],
)
def test_choose_expansion(p_values, labelled, kind, adapter):
    decision = choose_expansion(evidence(**p_values), labelled, RULE)
    assert (decision.kind, decision.adapter_id) == (kind, adapter)
    assert decision.reason


@given(st.dictionaries(st.sampled_from("abcde"), st.floats(0, 1)), st.integers(40, 500))
def test_one_adapter_that_explains_is_enough(p_values, labelled):
    explained = any(p > RULE.alpha for p in p_values.values())
    assert (choose_expansion(evidence(**p_values), labelled, RULE).kind == DecisionKind.REUSE) is explained


def test_a_decision_keeps_its_scores_by_layer_and_adapter():
    decision = choose_expansion(evidence(a=0.5, b=0.1), 100, RULE)
    assert decision.z_scores == {"9": {"a": 1.0, "b": 1.0}}
    assert decision.p_value == 0.5


@pytest.mark.parametrize(
    ("measured", "rows", "expected", "kind"),
    [
        pytest.param(0.5, 40, 0.9, DecisionKind.REFRESH, id="falls short beyond chance"),
        pytest.param(0.88, 40, 0.9, DecisionKind.REUSE, id="within the gate"),
        pytest.param(0.75, 4, 0.9, DecisionKind.REUSE, id="four rows prove nothing"),
        pytest.param(None, 0, 0.9, DecisionKind.REUSE, id="nothing to measure on"),
        pytest.param(0.5, 40, None, DecisionKind.REUSE, id="nothing to compare with"),
    ],
)
def test_refine_reuse(measured, rows, expected, kind):
    decision = Decision(DecisionKind.REUSE, "a", "because")
    refined = refine_reuse(decision, measured, rows, expected, RULE)
    assert refined.kind == kind
    assert refined.alternatives == {"reuse": measured, "expected": expected}


def test_binomial_tail_is_a_distribution_function():
    assert binomial_tail(10, 10, 0.3) == pytest.approx(1)
    assert binomial_tail(0, 3, 0.5) == pytest.approx(0.125)
