import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from registry.records import Decision, DecisionKind, MixtureScan, ShiftEvidence
from tasks.policies.expansion import (
    ShiftRule,
    binomial_tail,
    choose_expansion,
    choose_growth,
    lacks_rows,
    refine_reuse,
    tell_growth,
)

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


@pytest.mark.parametrize(
    ("p_values", "labelled", "held_out", "told"),
    [
        pytest.param({"a": 0.5}, 0, 0, "no row to learn from", id="explained, without labels"),
        pytest.param({"a": 0.5}, 36, 0, "too few to judge it by (0, 2 at least)", id="explained, nothing to judge by"),
        pytest.param({}, 100, 1, "too few to judge it by (1, 2 at least)", id="new, nothing to judge by"),
        pytest.param({}, 39, 9, "39 rows to learn from", id="new, too few to train"),
    ],
)
def test_a_hold_says_what_is_missing(p_values, labelled, held_out, told):
    decision = choose_expansion(evidence(**p_values), labelled, RULE, held_out)
    assert decision.kind == DecisionKind.HOLD
    assert told in decision.reason


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
    assert (binomial_tail(2, 3, 1.0), binomial_tail(3, 3, 1.0), binomial_tail(0, 3, 0.0)) == (0, 1, 1)


@pytest.mark.parametrize(("correct", "rows", "chance"), [(1000, 1100, 0.9), (1900, 2000, 0.95), (49_900, 100_000, 0.5)])
def test_binomial_tail_has_no_largest_number_of_rows(correct, rows, chance):
    assert binomial_tail(correct, rows, chance) == pytest.approx(binom.cdf(correct, rows, chance), rel=1e-6)


@pytest.mark.parametrize(
    ("least", "labelled", "kind", "told"),
    [
        pytest.param({"2": 0.4, "3": 1.0}, 100, DecisionKind.REUSE, "layer 3: z 1.00 <= 1", id="all know it"),
        pytest.param({"2": 0.4, "3": 1.01}, 100, DecisionKind.EXPAND, "layer 3 does not know", id="one does not"),
        pytest.param({"2": 1.5, "3": 9.0}, 100, DecisionKind.EXPAND, "layer 2 does not know", id="shallowest first"),
        pytest.param({"2": 0.1, "3": None}, 100, DecisionKind.EXPAND, "layer 3: no descriptor", id="nothing known"),
        pytest.param({"2": 1.5}, 39, DecisionKind.HOLD, "39 rows to learn from", id="too few rows to grow"),
        pytest.param({"2": 0.1}, 0, DecisionKind.HOLD, "no row to learn from", id="no labels change nothing"),
        pytest.param({}, 100, DecisionKind.HOLD, "no held-out row", id="nothing to scan with"),
    ],
)
def test_choose_growth(least, labelled, kind, told):
    decision = choose_growth(MixtureScan("m", least, {}), labelled, 1.0, 40)
    assert (decision.kind, decision.adapter_id, decision.p_value) == (kind, "m", None)
    assert told in decision.reason


@pytest.mark.parametrize(("labelled", "kind"), [(40, DecisionKind.EXPAND), (39, DecisionKind.HOLD)])
def test_a_group_without_a_mixture_gets_one(labelled, kind):
    decision = choose_growth(MixtureScan(None, {}, {}), labelled, 1.0, 40)
    assert (decision.kind, decision.adapter_id) == (kind, None)


@given(st.integers(0, 60), st.integers(0, 5), st.floats(0, 1))
def test_a_decision_lacks_no_rows_where_it_was_just_taken(labelled, held_out, p_value):
    kind = choose_expansion(evidence(a=p_value), labelled, RULE, held_out).kind
    assert not lacks_rows(kind, labelled, held_out, RULE.min_rows)


@pytest.mark.parametrize(
    ("kind", "labelled", "held_out", "lacks"),
    [
        (DecisionKind.EXPAND, 39, 8, True),
        (DecisionKind.EXPAND, 40, 1, True),
        (DecisionKind.REUSE, 39, 8, False),
        (DecisionKind.REUSE, 0, 0, True),
        (DecisionKind.REFRESH, 39, 1, True),
        (DecisionKind.HOLD, 0, 0, False),
    ],
)
def test_what_a_decision_needs(kind, labelled, held_out, lacks):
    assert lacks_rows(kind, labelled, held_out, 40) == lacks


def test_what_grew_is_told_layer_by_layer():
    assert tell_growth({}, (1, 2), 1.0) == "first adapters in layers 1, 2"
    told = tell_growth({"2": 0.5, "3": 1.5, "4": None}, (3, 4), 1.0)
    assert told == "layer 2 is reused: z 0.50 <= 1; layer 3 grew: z 1.50 > 1; layer 4 grew: no descriptor"


def test_an_adapter_that_knows_the_classes_comes_before_one_that_knows_none():
    strange = ShiftEvidence("a", 1.0, 0.04, {}, novelty=0.05)
    known = ShiftEvidence("b", 0.3, 0.001, {})
    assert choose_expansion([strange, known], 100, RULE).adapter_id == "b"
    differs = ShiftEvidence("b", 0.001, 0.5, {})
    assert choose_expansion([strange, differs], 100, RULE).adapter_id == "a"


def test_an_adapter_that_knows_none_of_the_classes_explains_nothing_farther_than_those_that_know_them_and_reject():
    knows = ShiftEvidence("a", 0.001, 0.3, {})
    decision = choose_expansion([knows, ShiftEvidence("b", 1.0, 0.38, {}, novelty=0.36)], 100, RULE)
    assert (decision.kind, decision.p_value) == (DecisionKind.EXPAND, 0.001)


def test_an_adapter_that_could_not_be_compared_is_taken_where_no_other_explains_the_batch():
    blank, known = ShiftEvidence("a", 1.0, 0.0, {}, compared=False), ShiftEvidence("b", 0.3, 0.001, {})
    assert choose_expansion([blank, known], 100, RULE).adapter_id == "b"
    decision = choose_expansion([blank, ShiftEvidence("b", 0.001, 0.5, {})], 100, RULE)
    assert (decision.kind, decision.adapter_id) == (DecisionKind.REUSE, "a")
    assert decision.reason.startswith("nothing tells the batch from a:")
