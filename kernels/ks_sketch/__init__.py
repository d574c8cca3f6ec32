"""Mergeable sketches of every dimension of a sample, and two-sample statistics between them.

A sketch counts values in cells that are fixed once from a reference sample, so sketches add up over batches and shards,
and a batch is taken out again exactly. The Kolmogorov-Smirnov statistic (Smirnov, 1948) read from two sketches is below
the exact one by at most the largest mass of one cell, which is reported with it.
"""

# fields carry shape suffixes too
# N records, D dimensions, C cells

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.dispatch import runs_triton
from kernels.ks_sketch import cpu

NUM_CELLS = 1024


class Grid(NamedTuple):
    """Cells of equal width from `low` on, `per_unit` of them per unit; the first and the last take the rest."""

    low_D: Tensor
    per_unit_D: Tensor
    num_cells: int = NUM_CELLS


class Sketch(NamedTuple):
    """Counts (D, C) int64, sums and sums of squares (D,) float64. Add sketches of one grid with `merge`."""

    counts_DC: Tensor
    sum_D: Tensor
    square_D: Tensor


class Difference(NamedTuple):
    """KS statistic per dimension, how much it may be too small, and its asymptotic p-value."""

    statistic_D: Tensor
    error_D: Tensor
    p_value_D: Tensor


def fit_grid(x_ND: Tensor, num_cells: int = NUM_CELLS, tail: float = 0.002) -> Grid:
    """A grid over all but a share `tail` of the values at either end of each dimension.

    Raises ValueError for records that are not finite.
    """
    _refuse_non_finite(_moments(x_ND)[0])
    position = max(1, round(tail * len(x_ND)))
    low_D = x_ND.kthvalue(position, 0).values.float()
    high_D = x_ND.kthvalue(len(x_ND) + 1 - position, 0).values.float()
    width_D = torch.where(high_D > low_D, high_D - low_D, 1.0)  # a constant dimension takes one cell of its grid
    return Grid(low_D, (num_cells - 2) / width_D, num_cells)


def sketch(x_ND: Tensor, grid: Grid) -> Sketch:
    """Count a sample, one pass, in float32 arithmetic. Raises ValueError for records that are not finite."""
    sum_D, square_D = _moments(x_ND)
    _refuse_non_finite(sum_D)
    if runs_triton(x_ND):
        from kernels.ks_sketch import triton  # noqa: PLC0415  # only machines with CUDA have Triton

        return Sketch(triton.cell_counts(x_ND, *grid), sum_D, square_D)
    return Sketch(cpu.cell_counts(x_ND, *grid), sum_D, square_D)


def _moments(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and sums of squares; float32 within a chunk that fits the cache, float64 across chunks."""
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    chunks = [chunk.to(wide) for chunk in x_ND.split(256)]
    sums_2CD = torch.stack([torch.stack([chunk.sum(0), chunk.square().sum(0)]) for chunk in chunks], 1)
    sum_D, square_D = sums_2CD.sum(1, dtype=torch.float64)
    return sum_D, square_D


def merge(a: Sketch, b: Sketch) -> Sketch:
    """The sketch of both samples together."""
    return Sketch(a.counts_DC + b.counts_DC, a.sum_D + b.sum_D, a.square_D + b.square_D)


def remove(total: Sketch, part: Sketch) -> Sketch:
    """The sketch of a sample without a part of it: counts exactly, moments up to rounding."""
    return Sketch(total.counts_DC - part.counts_DC, total.sum_D - part.sum_D, total.square_D - part.square_D)


def size(s: Sketch) -> int:
    return int(s.counts_DC[0].sum()) if len(s.counts_DC) else 0


def ks(a: Sketch, b: Sketch) -> Difference:
    """Two-sample KS of each dimension. Raises ValueError for an empty sketch."""
    n, m = size(a), size(b)
    if not (n and m):
        raise ValueError(f"KS between {n} and {m} records; both sketches need some")
    mass_a_DC, mass_b_DC = a.counts_DC / n, b.counts_DC / m
    statistic_D = (mass_a_DC.cumsum(1, dtype=torch.float64) - mass_b_DC.cumsum(1, dtype=torch.float64)).abs().amax(1)
    error_D = torch.maximum(mass_a_DC, mass_b_DC).amax(1)
    root = (n * m / (n + m)) ** 0.5
    return Difference(statistic_D, error_D, _kolmogorov_tail((root + 0.12 + 0.11 / root) * statistic_D))


def psi(reference: Sketch, new: Sketch, bins: int = 10) -> Tensor:
    """Population stability index (D,) over bins of about equal reference mass; a count of 0 is taken as one half.

    Raises ValueError for an empty sketch.
    """
    if not (size(reference) and size(new)):
        raise ValueError(f"PSI between {size(reference)} and {size(new)} records; both sketches need some")
    cdf_DC = reference.counts_DC.cumsum(1) / size(reference)
    bin_DC = ((cdf_DC - reference.counts_DC / (2 * size(reference))) * bins).long().clamp(0, bins - 1)
    shares = []
    for counts_DC in (reference.counts_DC, new.counts_DC):
        binned_DB = torch.zeros(len(counts_DC), bins, dtype=torch.float64, device=counts_DC.device)
        binned_DB.scatter_add_(1, bin_DC, counts_DC.double()).clamp_(min=0.5)
        shares.append(binned_DB / binned_DB.sum(1, keepdim=True))
    return ((shares[1] - shares[0]) * (shares[1] / shares[0]).log()).sum(1)


def _kolmogorov_tail(x_D: Tensor) -> Tensor:
    """P(K > x), with Stephens' finite-sample argument already in x; below 0.2 it is 1 to twelve digits."""
    k = torch.arange(1, 101, dtype=torch.float64, device=x_D.device)
    series_D = 2 * ((-1) ** (k - 1) * torch.exp(-2 * (k * x_D[:, None]) ** 2)).sum(1)
    return torch.where(x_D < 0.2, 1.0, series_D).clamp(0, 1)


def _refuse_non_finite(sum_D: Tensor) -> None:
    if not bool(sum_D.isfinite().all()):
        bad = (~sum_D.isfinite()).nonzero()[:, 0].tolist()
        raise ValueError(f"dimensions {bad[:8]} hold values that are not finite; drop or repair those records first")
