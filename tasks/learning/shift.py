"""Has the input distribution of a batch changed? A two-sample permutation test with an exact p-value.

Shapes: N rows of the batch, M rows of the reference, S = N + M, D width, P permutations.
Published source: Gretton et al., A Kernel Two-Sample Test (JMLR 2012), unbiased estimator.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.learning.tensors import require_finite


@dataclass(frozen=True, slots=True)
class ShiftTest:
    """`novelty` is the statistic that a change of classes alone reaches, zero where both samples hold the same ones."""

    statistic: float
    p_value: float
    permutations: int
    novelty: float = 0.0

    @property
    def p_beyond_novelty(self) -> float:
        """The p-value, or 1 where new classes alone explain the statistic: what a decision should read."""
        return 1.0 if self.novelty > 0 and self.statistic <= self.novelty else self.p_value


def mmd_test(
    batch_ND: Tensor,
    reference_MD: Tensor,
    permutations: int,
    seed: int,
    coordinates: int = 32,
    batch_labels: Sequence[str] | None = None,
    reference_labels: Sequence[str] | None = None,
) -> ShiftTest:
    """Unbiased RBF-MMD^2 on whitened principal coordinates, and p = (k + 1) / (P + 1).

    Coordinates and bandwidth come from both samples together, so that under the null every relabelling of the rows
    is equally likely and the p-value is exact. With labels given, classes that both samples hold are compared alone;
    where there are none, the test also reports the novelty: the largest statistic between two halves of the classes
    of one sample. Raises NonFiniteError.
    """
    if batch_labels is not None and reference_labels is not None:
        shared = set(batch_labels) & set(reference_labels)
        if not shared:
            plain = mmd_test(batch_ND, reference_MD, permutations, seed, coordinates)
            samples = ((batch_ND, batch_labels), (reference_MD, reference_labels))
            novelty = max(class_novelty(rows, labels, coordinates) for rows, labels in samples)
            return ShiftTest(plain.statistic, plain.p_value, permutations, novelty)
        mine = [i for i, label in enumerate(batch_labels) if label in shared]
        theirs = [i for i, label in enumerate(reference_labels) if label in shared]
        if min(len(mine), len(theirs)) >= 2:
            batch_ND, reference_MD = batch_ND[mine], reference_MD[theirs]
    if min(len(batch_ND), len(reference_MD)) < 2:
        raise ValueError("a two-sample test needs two rows on each side")
    rows_SD = require_finite("shift test", torch.cat([batch_ND, reference_MD])).double()
    kernel_SS = _rbf(_whiten(rows_SD, coordinates))
    values_P = _statistics(kernel_SS, _relabellings(len(batch_ND), len(rows_SD), permutations, seed), len(batch_ND))
    at_least = int((values_P[1:] >= values_P[0] - 1e-12).sum())  # ties count against the shift
    return ShiftTest(float(values_P[0]), (at_least + 1) / (permutations + 1), permutations)


def class_novelty(rows_ND: Tensor, labels: Sequence[str], coordinates: int = 32) -> float:
    """MMD^2 between the rows of the first and of the second half of the classes; 0 for fewer than two classes."""
    names = sorted(set(labels))
    first = torch.tensor([label in names[: len(names) // 2] for label in labels])
    if min(int(first.sum()), int((~first).sum())) < 2:
        return 0.0
    return mmd_test(rows_ND[first], rows_ND[~first], 0, 0, coordinates).statistic


def _whiten(rows_SD: Tensor, coordinates: int) -> Tensor:
    centred_SD = rows_SD - rows_SD.mean(0)
    left_SR, values_R, _ = torch.linalg.svd(centred_SD, full_matrices=False)
    # with as many coordinates as rows every two rows are equally far apart, and the test is blind
    kept = max(1, min(coordinates, len(rows_SD) // 5, int((values_R > values_R[0] * 1e-6).sum())))
    return left_SR[:, :kept] * len(rows_SD) ** 0.5


def _rbf(rows_SR: Tensor) -> Tensor:
    """Gaussian kernel at the median distance, with a zero diagonal: the unbiased estimator leaves i = j out."""
    squared_SS = torch.cdist(rows_SR, rows_SR).square()
    off_diagonal = squared_SS[~torch.eye(len(rows_SR), dtype=torch.bool)]
    kernel_SS = torch.exp(-squared_SS / off_diagonal.median().clamp_min(1e-12))
    return kernel_SS.fill_diagonal_(0)


def _relabellings(batch: int, total: int, permutations: int, seed: int) -> Tensor:
    """(S, 1 + P) of 0 and 1: column 0 is the labelling that happened."""
    generator = torch.Generator().manual_seed(seed)
    labels_SP = torch.zeros(total, permutations + 1, dtype=torch.float64)
    labels_SP[:batch, 0] = 1
    for column in range(1, permutations + 1):
        labels_SP[torch.randperm(total, generator=generator)[:batch], column] = 1
    return labels_SP


def _statistics(kernel_SS: Tensor, labels_SP: Tensor, batch: int) -> Tensor:
    """MMD^2 of every labelling from one product: with K 1 known, w'Kw gives all three sums."""
    reference = len(kernel_SS) - batch
    within_P = (labels_SP * (kernel_SS @ labels_SP)).sum(0)
    touching_P = kernel_SS.sum(1) @ labels_SP
    across_P = touching_P - within_P
    rest_P = kernel_SS.sum() - 2 * touching_P + within_P
    return (
        within_P / (batch * (batch - 1)) + rest_P / (reference * (reference - 1)) - 2 * across_P / (batch * reference)
    )
