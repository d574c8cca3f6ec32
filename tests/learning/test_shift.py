"""The batch test keeps its promise about false alarms and sees shifts that lower the reconstruction error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tasks.learning.shift import _rbf, _relabellings, _statistics, mmd_test
from tasks.learning.tensors import NonFiniteError


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


def test_one_product_gives_the_definition() -> None:
    kernel_SS = _rbf(sample(12, 3).double())
    labels_SP = _relabellings(5, 12, 6, seed=1)
    values_P = _statistics(kernel_SS, labels_SP, 5)
    for column in range(7):
        mine, other = labels_SP[:, column].bool(), ~labels_SP[:, column].bool()
        within = kernel_SS[mine][:, mine].sum() / 20 + kernel_SS[other][:, other].sum() / 42
        torch.testing.assert_close(values_P[column], within - 2 * kernel_SS[mine][:, other].mean())


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 1000))
def test_p_values_are_in_range_and_repeatable(batch: int, reference: int, seed: int) -> None:
    test = mmd_test(sample(batch, seed), sample(reference, seed + 1), 19, seed)
    assert 1 / 20 <= test.p_value <= 1
    assert mmd_test(sample(batch, seed), sample(reference, seed + 1), 19, seed) == test


def test_non_finite_rows_are_an_error() -> None:
    with pytest.raises(NonFiniteError):
        mmd_test(sample(5, 0) / 0, sample(5, 1), 9, 0)


def test_new_classes_alone_are_no_shift_and_shared_ones_are_compared_alone() -> None:
    rows_ND, labels = sample(80, 1), [f"{i % 4}" for i in range(80)]
    for i, label in enumerate(labels):
        rows_ND[i, int(label)] += 4
    first, second = [i for i in range(80) if i % 4 < 2], [i for i in range(80) if i % 4 >= 2]
    known = sample(80, 2)
    for i in range(80):
        known[i, i % 4] += 4
    test = mmd_test(rows_ND, known[first], 199, 0, batch_labels=labels, reference_labels=[labels[i] for i in first])
    assert test.p_value > 0.01
    novel = mmd_test(
        rows_ND[second],
        known[first],
        199,
        0,
        batch_labels=[labels[i] for i in second],
        reference_labels=[labels[i] for i in first],
    )
    assert novel.p_value == 1 / 200
    assert novel.novelty > 0


def test_a_small_batch_of_wide_rows_is_not_blind() -> None:
    generator = torch.Generator().manual_seed(0)
    rows_ND = torch.randn(32, 128, generator=generator)
    rows_ND[:16, :4] += 4
    assert mmd_test(rows_ND[:16], rows_ND[16:], 199, 0).p_value <= 0.01
