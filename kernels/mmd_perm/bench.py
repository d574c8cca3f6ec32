"""Whole permutation test against the loop over permutations: `python -m kernels.mmd_perm.bench [--json]`.

Both sides start from two samples and end with a p-value: the kernel's width, the permutations and their statistics are
within the clock. Both permute alike, so that one statistic and one p-value can be compared.
"""

# S pooled records (N of the first sample, M of the second), D features

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.bench import Case, main
from kernels.mmd_perm import default_gamma, mmd_test

BASELINE = "alibi-detect's loop over permutations, re-implemented: reorder the kernel matrix, take three means"
SEED = 0


def permutation_loop(x_ND: Tensor, y_MD: Tensor, permutations: int) -> Tensor:
    """What alibi-detect 0.12 does: build K once, then draw a permutation and index K anew, again and again. It is given
    our width, which costs it less than its own median over pairs."""
    z_SD, n = torch.cat([x_ND, y_MD]), len(x_ND)
    kernel_SS = torch.exp(-default_gamma(z_SD) * torch.cdist(z_SD, z_SD).square()).fill_diagonal_(0)
    observed = _mmd2(kernel_SS, n)
    generator, exceeding = torch.Generator().manual_seed(SEED), 1
    for _ in range(permutations):
        order_S = torch.randperm(len(z_SD), generator=generator).to(z_SD.device)
        exceeding += int(_mmd2(kernel_SS[order_S][:, order_S], n) >= observed)
    return torch.tensor([float(observed), exceeding / (permutations + 1)])


def whole_test(x_ND: Tensor, y_MD: Tensor, permutations: int) -> Tensor:
    outcome = mmd_test(x_ND, y_MD, permutations, SEED)
    return torch.tensor([outcome.statistic, outcome.p_value])


def each_alone(outcome_2: Tensor) -> tuple[Tensor, ...]:
    """Statistic and p-value, so that either is compared with its own size."""
    return tuple(outcome_2)


def _mmd2(kernel_SS: Tensor, n: int) -> Tensor:
    m = kernel_SS.shape[0] - n
    xx, yy, xy = kernel_SS[:n, :n].sum(), kernel_SS[n:, n:].sum(), kernel_SS[:n, n:].mean()
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy


def cases(device: torch.device) -> Iterator[Case]:
    for n, dim, permutations in [(500, 384, 100), (1500, 384, 100), (128, 384, 199)]:
        x_ND, y_MD = torch.randn(n, dim, device=device) + 0.3, torch.randn(n, dim, device=device)
        yield Case(
            f"n=m={n} D={dim} P={permutations}",
            partial(permutation_loop, x_ND, y_MD, permutations),
            partial(whole_test, x_ND, y_MD, permutations),
            partial(whole_test, x_ND * 1.001, y_MD, permutations),
            to_check=each_alone,
            tolerance=1e-4,  # of MMD^2, which the loop loses in float32 as a small difference of sums
            flops=2 * (2 * n) ** 2 * (dim + permutations) / 2,
            bytes_moved=4 * 2 * n * (dim + permutations),
        )


if __name__ == "__main__":
    main("mmd_perm", BASELINE, cases)
