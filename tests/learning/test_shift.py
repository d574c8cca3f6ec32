"""The batch test keeps its promise about false alarms and sees shifts that lower the reconstruction error."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from registry.records import DecisionKind, ShiftEvidence
from tasks.learning.shift import Sample, _whiten, compare_samples, mmd_test, moved_dimensions
from tasks.learning.tensors import NonFiniteError
from tasks.policies.expansion import ShiftRule, choose_expansion


def sample(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_false_alarms_stay_within_their_binomial_interval(alpha: float) -> None:
    trials = 200
    alarms = sum(mmd_test(sample(20, 2 * i), sample(30, 2 * i + 1), 39, seed=i).p_value <= alpha for i in range(trials))
    assert binomtest(alarms, trials, alpha).pvalue > 0.001


def test_a_collapse_towards_the_mean_is_seen() -> None:
    test = mmd_test(sample(60, 1) * 0.3, sample(60, 2), 199, seed=0)
    assert test.p_value == 1 / 200
    assert test.statistic > 0.05


def test_the_statistic_is_the_definition_at_the_median_distance() -> None:
    x_ND, y_MD = sample(25, 3), sample(30, 4)
    white_SR = _whiten(torch.cat([x_ND, y_MD]).double())
    squared_SS = torch.cdist(white_SR, white_SR, compute_mode="donot_use_mm_for_euclid_dist").square()
    median = squared_SS[torch.ones_like(squared_SS).triu(1).bool()].median()
    kernel_SS = torch.exp(-squared_SS / median).fill_diagonal_(0)
    within = kernel_SS[:25, :25].sum() / (25 * 24) + kernel_SS[25:, 25:].sum() / (30 * 29)
    expected = float(within - 2 * kernel_SS[:25, 25:].mean())
    assert mmd_test(x_ND, y_MD, 0, seed=0).statistic == pytest.approx(expected, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 1000))
def test_p_values_are_in_range_and_repeatable(batch: int, reference: int, seed: int) -> None:
    test = mmd_test(sample(batch, seed), sample(reference, seed + 1), 19, seed)
    assert 1 / 20 <= test.p_value <= 1
    assert mmd_test(sample(batch, seed), sample(reference, seed + 1), 19, seed) == test


def test_the_dimensions_that_moved_are_counted() -> None:
    rows_ND, moved_ND = sample(200, 1), sample(200, 2)
    assert moved_dimensions(rows_ND, moved_ND, 0.01) == 0
    moved_ND[:, :2] += 2
    assert moved_dimensions(rows_ND, moved_ND, 0.01) == 2 / 8


@pytest.mark.parametrize("labels", [None, ["a"]])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_single_row_tells_nothing(rows, labels) -> None:
    reference = Sample(sample(20, 1), labels and labels * 20)
    test = compare_samples(Sample(sample(rows, 2), labels and labels * rows), reference, 19, seed=0)
    assert (test.p_beyond_novelty, test.compared) == (1, False)


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_are_all_alike_are_no_shift(seed: int) -> None:
    """What rounding leaves of a statistic of zero used to be compared."""
    row_D = torch.randn(96, generator=torch.Generator().manual_seed(seed))
    assert compare_samples(Sample(row_D.repeat(3, 1)), Sample(row_D.repeat(300, 1)), 499, seed).p_value == 1


@pytest.mark.parametrize(("offset", "seen"), [(0, False), (3, True)])
def test_many_copies_of_one_row_hide_no_shift_of_the_others(offset: float, seen: bool) -> None:
    """The median distance of all pairs was zero, and no two rows but the copies were alike."""
    batch_ND, reference_ND = sample(200, 1) + offset, sample(200, 2)
    batch_ND[:150] = reference_ND[:150] = 0.3
    assert (mmd_test(batch_ND, reference_ND, 199, 0).p_value <= 0.02) == seen


def test_non_finite_rows_are_an_error() -> None:
    with pytest.raises(NonFiniteError):
        mmd_test(sample(5, 0) / 0, sample(5, 1), 9, 0)


def by_class(count: int, seed: int, classes: str, offset: float = 0.0) -> Sample:
    """Rows around a centre for each class; `offset` moves them all, as a change of the camera would."""
    labels = [classes[i % len(classes)] for i in range(count)]
    rows_ND = sample(count, seed) + offset
    for i, label in enumerate(labels):
        rows_ND[i, int(label)] += 3
    return Sample(rows_ND, labels)


def test_new_classes_alone_are_no_shift() -> None:
    test = compare_samples(by_class(80, 1, "4567"), by_class(80, 2, "0123"), 199, 0)
    assert test.p_value == 1 / 200
    assert test.novelty > 0
    assert test.p_beyond_novelty == 1


def test_new_classes_in_a_new_look_are_a_shift() -> None:
    test = compare_samples(by_class(80, 1, "4567", offset=3), by_class(80, 2, "0123"), 199, 0)
    assert test.novelty > 0
    assert test.p_beyond_novelty == 1 / 200


def test_other_shares_of_the_same_classes_are_no_shift() -> None:
    few, many = by_class(80, 1, "00000123"), by_class(80, 2, "01232222")
    assert mmd_test(few.rows_ND, many.rows_ND, 199, 0).p_value == 1 / 200
    assert compare_samples(few, many, 199, 0).p_value > 0.01


def test_a_new_look_of_old_classes_is_a_shift_whatever_their_shares() -> None:
    shifted = by_class(80, 1, "00000123", offset=1)
    assert compare_samples(shifted, by_class(80, 2, "01232222"), 199, 0).p_value == 1 / 200


def test_classes_that_both_samples_hold_are_compared_alone() -> None:
    assert compare_samples(by_class(80, 1, "0123"), by_class(80, 2, "01"), 199, 0).p_value > 0.01


@pytest.mark.parametrize(("new", "old"), [("23", "01"), ("3", "0124"), ("7", "0123456")])
def test_a_few_new_classes_are_a_shift_only_in_a_new_look(new: str, old: str) -> None:
    tests = [compare_samples(by_class(40, 1, new, look), by_class(70, 2, old), 199, 0) for look in (0, 3)]
    assert [test.p_beyond_novelty for test in tests] == [1, 1 / 200]


@pytest.mark.parametrize(("look", "seen"), [(0, 0), (1.5, 5)])
def test_a_rare_class_hides_no_new_look_of_new_classes(look: float, seen: int) -> None:
    """Cut to its one row, two of each class were left: two looks of five were seen."""
    new, old = "456" * 26 + "7", "012" * 26 + "33"
    pairs = [(by_class(len(new), seed, new, look), by_class(len(old), seed + 100, old)) for seed in range(5)]
    tests = [compare_samples(mine, theirs, 199, 0) for mine, theirs in pairs]
    assert sum(test.p_beyond_novelty <= 0.01 for test in tests) == seen


@pytest.mark.parametrize("look", [0, 3])
def test_nothing_tells_one_new_class_from_a_shift(look: float) -> None:
    test = compare_samples(by_class(40, 1, "1", look), by_class(40, 2, "0"), 199, 0)
    assert (test.p_value, test.p_beyond_novelty) == (1 / 200, 1)


@pytest.mark.parametrize("rows", [8, 12])
def test_a_new_look_of_old_classes_shows_on_few_rows(rows: int) -> None:
    tests = [compare_samples(by_class(rows, 1, "01", look), by_class(rows, 2, "01"), 199, 0) for look in (0, 3)]
    assert tests[0].p_value > 0.05 > tests[1].p_value
    assert [test.novelty for test in tests] == [0, 0]


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_false_alarms_within_classes_stay_within_their_binomial_interval(alpha: float) -> None:
    trials = 200
    p_values = [
        compare_samples(by_class(24, 2 * i, "0012"), by_class(30, 2 * i + 1, "0122"), 39, seed=i).p_value
        for i in range(trials)
    ]
    assert binomtest(sum(p <= alpha for p in p_values), trials, alpha).pvalue > 0.001


def test_a_small_batch_of_wide_rows_is_not_blind() -> None:
    generator = torch.Generator().manual_seed(0)
    rows_ND = torch.randn(32, 128, generator=generator)
    rows_ND[:16, :4] += 4
    assert mmd_test(rows_ND[:16], rows_ND[16:], 199, 0).p_value <= 0.01


def share_that_expands(alpha: float, trials: int, batch_of: Callable[[int], Sample]) -> int:
    """How many batches expand, each decided against two known looks: one of the stream's own and a stranger."""
    rule, expanded = ShiftRule(alpha, min_rows=1, refresh_drop=1.0), 0
    for i in range(trials):
        looks = {"own": by_class(40, 3 * i + 1, "0122"), "strange": by_class(40, 3 * i + 2, "0122", offset=2)}
        batch, evidence = batch_of(3 * i), []
        for name, reference in looks.items():
            test = compare_samples(batch, reference, 99, seed=i)
            evidence.append(ShiftEvidence(name, test.p_beyond_novelty, test.statistic, {}, test.novelty))
        expanded += choose_expansion(evidence, len(batch.rows_ND), rule).kind is DecisionKind.EXPAND
    return expanded


@pytest.mark.parametrize("alpha", [0.02, 0.1])
def test_decisions_without_shift_expand_within_the_binomial_interval_of_alpha(alpha: float) -> None:
    expanded = share_that_expands(alpha, 150, lambda seed: by_class(30, seed, "0012"))
    assert binomtest(expanded, 150, alpha).pvalue > 0.001


@pytest.mark.parametrize("offset", [-1.5, 1.0])
def test_decisions_on_a_planted_shift_expand(offset: float) -> None:
    assert share_that_expands(0.02, 40, lambda seed: by_class(30, seed, "0012", offset)) >= 38


def test_decisions_see_rows_that_collapse_towards_their_mean() -> None:
    def collapsed(seed: int) -> Sample:
        batch = by_class(30, seed, "0012")
        return Sample(batch.rows_ND * 0.3 + 0.7 * batch.rows_ND.mean(0), batch.labels)

    assert share_that_expands(0.02, 40, collapsed) >= 38
