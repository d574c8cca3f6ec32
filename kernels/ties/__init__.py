"""TIES merging: trim small values, elect a sign per position, average what agrees (Yadav et al., NeurIPS 2023)."""

# N adapters, P values of each

from torch import Tensor

from kernels.dispatch import runs_triton
from kernels.ties import cpu

__all__ = ["ties"]


def ties(stack_NP: Tensor, weight_N: Tensor, density: float) -> Tensor:
    """Merge (.., N, P) to (.., P), each adapter trimmed to its int(density * P) largest magnitudes.

    The sign is elected by the unweighted sum, weights apply afterwards, as in PEFT; values that tie with the smallest
    kept magnitude are all kept. Raises ValueError for a density outside 0..1.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density {density:g}; choose the share of values to keep, 0..1")
    if runs_triton(stack_NP):
        from kernels.ties import triton  # noqa: PLC0415  # only machines with CUDA have Triton

        return triton.ties(stack_NP, weight_N, density)
    return cpu.ties(stack_NP, weight_N, density)
