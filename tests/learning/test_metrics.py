"""Figures from an accuracy matrix, checked by hand."""

import pytest

from tasks.learning.metrics import continual_metrics

MATRIX = [[0.8], [0.6, 0.9], [0.7, 0.5, 1.0]]


def test_figures_of_a_triangle() -> None:
    metrics = continual_metrics(MATRIX)
    assert metrics.last == pytest.approx(2.2 / 3)
    assert metrics.average == pytest.approx((0.8 + 0.75 + 2.2 / 3) / 3)
    assert metrics.forgetting == pytest.approx((0.1 + 0.4) / 2)
    assert metrics.backward_transfer == pytest.approx((-0.1 - 0.4) / 2)
    assert metrics.forward_transfer is None


def test_batches_weigh_by_their_rows_and_rows_ahead_give_forward_transfer() -> None:
    metrics = continual_metrics([[0.8, 0.3], [0.6, 0.9]], weights=[100, 300], chance=[0.1, 0.1])
    assert metrics.last == pytest.approx(0.825)
    assert metrics.forward_transfer == pytest.approx(0.2)


def test_one_batch_forgets_nothing() -> None:
    assert continual_metrics([[0.5]]).forgetting == 0


def test_a_row_that_misses_the_diagonal_is_refused() -> None:
    with pytest.raises(ValueError, match="diagonal"):
        continual_metrics([[0.8], [0.6]])
