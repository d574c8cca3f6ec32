"""KS of every dimension of a new batch against scipy: `python -m kernels.ks_sketch.bench [--json]`."""

# N records, D dimensions

from collections.abc import Iterator
from functools import partial

import torch
from scipy.stats import ks_2samp
from torch import Tensor

from kernels.bench import Case, main
from kernels.ks_sketch import Grid, Sketch, fit_grid, ks, sketch

BASELINE = "scipy.stats.ks_2samp(method='asymp') for each dimension"


def scipy_loop(x_ND: Tensor, reference_ND: Tensor) -> Tensor:
    pairs = zip(x_ND.T.cpu().numpy(), reference_ND.T.cpu().numpy(), strict=True)
    return torch.tensor([ks_2samp(x, y, method="asymp").statistic for x, y in pairs])


def our_ks(x_ND: Tensor, reference: Sketch, grid: Grid) -> Tensor:
    return ks(sketch(x_ND, grid), reference).statistic_D.cpu()


def cases(device: torch.device) -> Iterator[Case]:
    for num, dims in [(10_000, 384), (1_000, 384), (10_000, 16)]:
        reference_ND = torch.randn(num, dims, device=device)
        x_ND = torch.randn(num, dims, device=device) + torch.linspace(0.2, 0.6, dims, device=device)
        grid = fit_grid(reference_ND)
        reference = sketch(reference_ND, grid)
        yield Case(
            f"N=M={num} D={dims}, reference sketch kept",
            partial(scipy_loop, x_ND, reference_ND),
            partial(our_ks, x_ND, reference, grid),
            partial(our_ks, x_ND + 0.05, reference, grid),
            tolerance=0.02,  # an approximation: the statistic is read between cells; 0.1 % would be below that
            bytes_moved=4 * num * dims,
        )


if __name__ == "__main__":
    main("ks_sketch", BASELINE, cases)
