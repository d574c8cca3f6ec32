"""Has the input distribution of a batch changed? Two-sample permutation tests with exact p-values.

Shapes: N rows of the batch, M rows of the reference, S = N + M, D width, R whitened coordinates, P labelings.
Published source: Gretton et al., A Kernel Two-Sample Test (JMLR 2012), unbiased estimator.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from statistics import median_low

import torch
from torch import Tensor

from kernels.ks_sketch import fit_grid, ks, sketch
from kernels.mmd_perm import labelings, mmd_statistics
from tasks.learning.tensors import require_finite

COORDINATES = 32
LEAST_SHARED = 16
"""With fewer rows of shared classes than this on a side, a batch that has new ones as well is judged by all."""
LEAST_ROWS = 2
"""Rows of a side that can be compared, and that a class keeps where classes are balanced."""
ROUNDING = 1e-9
"""Statistics that differ by less are alike: kernels are at most one."""
COPIES = 1e-12
"""Squared distance of whitened rows up to which they are one row."""
RARE = 0.25
"""Share of the median class's rows below which a class is left out where classes are balanced."""
DEALS = 99
"""Ways to deal classes to two sides that are tried at most."""
MARGIN = 1.2
"""By how much new classes must exceed every other way to deal the same classes to two sides. A change of input is
diluted by any deal that mixes it; without one, all deals are alike. Two classes against two without a change exceed it
in a fifth of the cases, more of them in a twentieth and less (docs/decisions/0103)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows (N, D) and, where they are known, their labels."""

    rows_ND: Tensor
    labels: Sequence[str] | None = None

    def of(self, classes: set[str]) -> "Sample":
        assert self.labels is not None
        return self._at([i for i, label in enumerate(self.labels) if label in classes])

    def of_each_class(self, most: int) -> "Sample":
        assert self.labels is not None
        met: Counter[str] = Counter()
        kept = []
        for i, label in enumerate(self.labels):
            met[label] += 1
            if met[label] <= most:
                kept.append(i)
        return self._at(kept)

    def _at(self, rows: list[int]) -> "Sample":
        assert self.labels is not None
        return Sample(self.rows_ND[rows], [self.labels[i] for i in rows])


@dataclass(frozen=True, slots=True)
class ShiftTest:
    """`novelty` is the largest statistic that other deals of new classes reach, zero where there is none; `compared` is
    False where a side had too few rows to compare."""

    statistic: float
    p_value: float
    novelty: float = 0.0
    compared: bool = True

    @property
    def p_beyond_novelty(self) -> float:
        """The p-value, or 1 where new classes alone explain the statistic: what a decision should read."""
        return 1.0 if self.novelty > 0 and self.statistic <= MARGIN * self.novelty else self.p_value


NOTHING_TOLD = ShiftTest(0.0, 1.0, compared=False)


def compare_samples(batch: Sample, reference: Sample, permutations: int, seed: int) -> ShiftTest:
    """Has the input changed, whatever happened to the classes?

    Classes that both samples hold are compared alone, by relabelings within each class, so that neither new classes
    nor other shares of old ones count as shift. Where there are none, or few, new classes count only beyond their
    novelty: one new class against one never does, since nothing tells it from a change.
    Samples without labels are compared as they are. A single row on a side says nothing: p = 1. Raises NonFiniteError.
    """
    if min(len(batch.rows_ND), len(reference.rows_ND)) < LEAST_ROWS:
        return NOTHING_TOLD
    if batch.labels is None or reference.labels is None:
        return mmd_test(batch.rows_ND, reference.rows_ND, permutations, seed)
    shared, new = set(batch.labels) & set(reference.labels), set(batch.labels) - set(reference.labels)
    mine, theirs = batch.of(shared), reference.of(shared)
    rows = min(len(mine.rows_ND), len(theirs.rows_ND))
    if rows >= (LEAST_SHARED if new else LEAST_ROWS):
        return _within_classes(mine, theirs, permutations, seed)
    if not new:
        return NOTHING_TOLD
    batch, reference = balance_classes(batch, reference)
    plain = mmd_test(batch.rows_ND, reference.rows_ND, permutations, seed)
    novelty = class_novelty(batch, reference, seed)
    return ShiftTest(plain.statistic, plain.p_value, plain.statistic if novelty is None else novelty)


def mmd_test(batch_ND: Tensor, reference_MD: Tensor, permutations: int, seed: int) -> ShiftTest:
    """Unbiased RBF-MMD^2 on whitened principal coordinates, and p = (k + 1) / (P + 1).

    Coordinates and bandwidth come from both samples together, so that under the null every relabeling of the rows
    is equally likely and the p-value is exact. Raises NonFiniteError.
    """
    if min(len(batch_ND), len(reference_MD)) < 2:
        raise ValueError("a two-sample test needs two rows on each side")
    return _test(batch_ND, reference_MD, labelings(len(batch_ND), len(reference_MD), permutations, seed))


def moved_dimensions(batch_ND: Tensor, reference_MD: Tensor, alpha: float) -> float:
    """Share of the dimensions whose distributions differ, each by Kolmogorov-Smirnov at `alpha` / D.

    It tells a change of few dimensions from one of all. Raises ValueError for values that are not finite.
    """
    grid = fit_grid(torch.cat([batch_ND, reference_MD]))
    found = ks(sketch(batch_ND, grid), sketch(reference_MD, grid))
    return float((found.p_value_D <= alpha / len(found.p_value_D)).double().mean())


def _within_classes(batch: Sample, reference: Sample, permutations: int, seed: int) -> ShiftTest:
    assert batch.labels is not None
    assert reference.labels is not None
    names = [*batch.labels, *reference.labels]
    member_SP = torch.zeros(len(names), permutations + 1)
    member_SP[: len(batch.labels), 0] = 1
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(set(names)):
        rows = [i for i, label in enumerate(names) if label == name]
        mine = int(member_SP[rows, 0].sum())
        order_PC = torch.rand(permutations, len(rows), generator=generator).argsort(1)
        member_SP[rows, 1:] = (order_PC < mine).float().mT
    return _test(batch.rows_ND, reference.rows_ND, member_SP)


def balance_classes(*samples: Sample) -> list[Sample]:
    """The first rows of each class, as many as the smallest class of any sample has, but at least LEAST_ROWS.

    Otherwise a deal's statistic would tell how many rows its classes have. Rare classes are left out: a class of two
    rows would leave no more of the others, too few to tell anything.
    """
    common = [sample.of(_common_classes(sample)) for sample in samples]
    most = max(LEAST_ROWS, min(min(Counter(sample.labels).values()) for sample in common))
    return [sample.of_each_class(most) for sample in common]


def _common_classes(sample: Sample) -> set[str]:
    """Of two classes both, of more at least half."""
    counts = Counter(sample.labels)
    return {name for name, rows in counts.items() if rows >= RARE * median_low(counts.values())}


def class_novelty(batch: Sample, reference: Sample, seed: int) -> float | None:
    """Largest MMD^2 among other deals of all the classes to two sides; None where there is no other."""
    assert batch.labels is not None
    assert reference.labels is not None
    names = [*batch.labels, *reference.labels]
    classes, mine = sorted(set(names)), set(batch.labels)
    deals = [set(deal) for deal in _deals(classes, len(mine), seed) if set(deal) not in (mine, set(classes) - mine)]
    if not deals:
        return None
    member_SP = torch.tensor([[float(name in deal) for deal in deals] for name in names])
    enough_P = torch.minimum(member_SP.sum(0), (1 - member_SP).sum(0)) >= 2  # rows a side that the statistic needs
    if not enough_P.any():
        return None
    return float(_statistics(batch.rows_ND, reference.rows_ND, member_SP[:, enough_P]).max())


def _deals(classes: Sequence[str], size: int, seed: int) -> list[tuple[str, ...]]:
    """Ways to pick `size` classes: all of them where they are few, else DEALS random ones."""
    if comb(len(classes), size) <= DEALS:
        return list(combinations(classes, size))
    generator = torch.Generator().manual_seed(seed)
    picks = (torch.randperm(len(classes), generator=generator)[:size].tolist() for _ in range(DEALS))
    return [tuple(classes[i] for i in pick) for pick in picks]


def _test(batch_ND: Tensor, reference_MD: Tensor, member_SP: Tensor) -> ShiftTest:
    """The first labeling against the others; ties count against the shift."""
    statistics_P = _statistics(batch_ND, reference_MD, member_SP)
    # of rows that are all alike every statistic is zero, but for what rounding leaves of a kernel that is one
    observed, rounding = statistics_P[0], (1e-6 * statistics_P.abs().max()).clamp_min(ROUNDING)
    at_least = int((statistics_P[1:] >= observed - rounding).sum())
    return ShiftTest(float(observed), (at_least + 1) / member_SP.shape[1])


def _statistics(batch_ND: Tensor, reference_MD: Tensor, member_SP: Tensor) -> Tensor:
    """MMD^2 of each labeling at the median distance of the whitened rows that differ: among many copies of one row the
    median of all is zero, and at that scale no two other rows are alike."""
    rows_SD = require_finite("shift test", torch.cat([batch_ND, reference_MD])).double()
    white_SR = _whiten(rows_SD)
    squared = torch.pdist(white_SR).square()
    apart = squared[squared > COPIES]
    gamma = 1 / (float(apart.median()) if len(apart) else COPIES)
    return mmd_statistics(white_SR, member_SP.to(white_SR), gamma)


def _whiten(rows_SD: Tensor) -> Tensor:
    centred_SD = rows_SD - rows_SD.mean(0)
    left_SR, values_R, _ = torch.linalg.svd(centred_SD, full_matrices=False)
    # with as many coordinates as rows every two rows are equally far apart, and the test is blind
    kept = max(1, min(COORDINATES, len(rows_SD) // 5, int((values_R > values_R[0] * 1e-6).sum())))
    return left_SR[:, :kept] * len(rows_SD) ** 0.5
