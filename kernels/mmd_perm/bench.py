"""Whole permutation test against the loop over permutations: `python -m kernels.mmd_perm.bench [--json]`."""

# S pooled records (N of the first sample), D features, P labelings

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.bench import Case, main
from kernels.mmd_perm import labelings, mmd_statistics

BASELINE = "alibi-detect's loop over permutations, re-implemented: reorder the kernel matrix, take three means"


def permutation_loop(z_SD: Tensor, orders_PS: Tensor, n: int, gamma: float) -> Tensor:
    """What alibi-detect 0.12 does: build K once, then index it anew for every permutation."""
    kernel_SS = torch.exp(-gamma * torch.cdist(z_SD, z_SD).square()).fill_diagonal_(0)
    return torch.stack([_mmd2(kernel_SS[order_S][:, order_S], n) for order_S in orders_PS])


def _mmd2(kernel_SS: Tensor, n: int) -> Tensor:
    m = kernel_SS.shape[0] - n
    xx, yy, xy = kernel_SS[:n, :n].sum(), kernel_SS[n:, n:].sum(), kernel_SS[:n, n:].mean()
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy


def cases(device: torch.device) -> Iterator[Case]:
    for n, dim, permutations in [(500, 384, 100), (1500, 384, 100), (128, 384, 199)]:
        z_SD = torch.randn(2 * n, dim, device=device)
        z_SD[:n] += 0.3
        member_SP = labelings(n, n, permutations, seed=0).to(device)
        orders_PS = member_SP.T.argsort(dim=1, descending=True, stable=True)
        gamma = 1 / (2 * dim)
        wrong_SD = z_SD.clone()
        wrong_SD[:n] *= 1.001
        yield Case(
            f"n=m={n} D={dim} P={permutations}",
            partial(permutation_loop, z_SD, orders_PS, n, gamma),
            partial(mmd_statistics, z_SD, member_SP, gamma),
            partial(mmd_statistics, wrong_SD, member_SP, gamma),
            tolerance=1e-4,  # of MMD^2, which the loop loses in float32 as a small difference of sums
            flops=2 * (2 * n) ** 2 * (dim + permutations) / 2,
            bytes_moved=4 * 2 * n * (dim + permutations),
        )


if __name__ == "__main__":
    main("mmd_perm", BASELINE, cases)
