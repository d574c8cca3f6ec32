"""Permutation test of the maximum mean discrepancy: do two samples come from one distribution?

Unbiased MMD^2 with an RBF kernel (Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012, eq. 3) for the observed
labeling and P random ones, as one matrix product per tile of the kernel matrix. The p-value is (k + 1) / (P + 1)
(Phipson and Smyth, 2010), never 0.
"""

# S pooled records (N of the first sample, M of the second), D features, P labelings

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.dispatch import runs_triton
from kernels.mmd_perm import cpu


@dataclass(frozen=True)
class MMDTest:
    """Outcome of a permutation test; `statistic` is the unbiased MMD^2, which may be negative."""

    statistic: float
    p_value: float
    permutations: int


def mmd_statistics(z_SD: Tensor, member_SP: Tensor, gamma: float) -> Tensor:
    """Unbiased MMD^2 of every labeling, (P,) float64.

    z_SD: pooled records, float32 or float64. member_SP: 1 for the first sample, 0 for the second, type of z; each
    column has at least two of both. gamma: of exp(-gamma |z - z'|^2). Memory O(S (P + tile)).
    """
    # The forms get the larger sample's sum as what the other sums leave, so it must not be the few beside the many.
    larger_P = member_SP.sum(0, dtype=torch.float64) > len(z_SD) / 2
    member_SP = torch.where(larger_P, 1 - member_SP, member_SP)
    if runs_triton(z_SD, member_SP):
        from kernels.mmd_perm import triton  # noqa: PLC0415  # only machines with CUDA have Triton

        return triton.mmd_statistics(z_SD, member_SP, gamma)
    return cpu.mmd_statistics(z_SD, member_SP, gamma)


def mmd_test(x_ND: Tensor, y_MD: Tensor, permutations: int = 199, seed: int = 0, gamma: float | None = None) -> MMDTest:
    """Test whether x and y share a distribution.

    Raises ValueError with fewer than two records on a side, or with records that are not finite.
    """
    if min(len(x_ND), len(y_MD)) < 2:
        raise ValueError(f"MMD needs two records on each side, got {len(x_ND)} and {len(y_MD)}")
    z_SD = torch.cat([x_ND, y_MD])
    member_SP = labelings(len(x_ND), len(y_MD), permutations, seed).to(z_SD)
    statistics_P = mmd_statistics(z_SD, member_SP, default_gamma(z_SD) if gamma is None else gamma)
    observed, permuted_P = statistics_P[0], statistics_P[1:]
    if not observed.isfinite():
        raise ValueError("MMD of records that are not finite; drop or repair them before the test")
    # Labelings that swap equal records tie with the observed one; rounding must not decide such a tie. The means that a
    # statistic consists of are at most 1, whatever its own size: it was seen 20 eps off the definition.
    rounding = 32 * torch.finfo(z_SD.dtype).eps
    exceeding = int((permuted_P >= observed - rounding).sum())
    return MMDTest(float(observed), (exceeding + 1) / (permutations + 1), permutations)


def labelings(n: int, m: int, permutations: int, seed: int) -> Tensor:
    """Indicators of the first sample, (n + m, 1 + permutations) float32: the observed labeling, then random ones."""
    generator = torch.Generator().manual_seed(seed)
    picks = [torch.arange(n), *(torch.randperm(n + m, generator=generator)[:n] for _ in range(permutations))]
    return torch.zeros(1 + permutations, n + m).scatter_(1, torch.stack(picks), 1.0).T.contiguous()


def default_gamma(z_SD: Tensor) -> float:
    """Inverse of twice the median squared distance to the median record: about that of the mean pair.

    Symmetric in the pooled records, so the test stays exact, and O(S D): the usual median over pairs is O(S^2 D).
    """
    from_centre_S = (z_SD - _median(z_SD)).square().sum(1).double()
    scale = float(2 * from_centre_S.median()) or float(2 * from_centre_S.mean())
    return 1 / scale if scale else 1.0


def _median(z_SD: Tensor) -> Tensor:
    """(D,): torch's, the lower of two in the middle; numpy's selection is vectorised and takes a third of the time."""
    if z_SD.is_cuda or z_SD.dtype not in (torch.float32, torch.float64):
        return z_SD.median(0).values
    middle = (len(z_SD) - 1) // 2
    return torch.from_numpy(np.partition(z_SD.detach().numpy(), middle, axis=0)[middle])
