"""Weighted sum of adapters, tensor by tensor ("task arithmetic": Ilharco et al., ICLR 2023).

On low-rank factors this merges A and B apart from each other, which is PEFT's `linear` and not the sum of the updates
B A: measured 175 % off it. `lowrank_merge` is exact; this form suits bottlenecks, statistics and heads.
"""

# N adapters; any further dimensions

from torch import Tensor

from kernels.dispatch import runs_triton
from kernels.merge_n import cpu

__all__ = ["merge_n"]


def merge_n(stack_N: Tensor, weight_N: Tensor) -> Tensor:
    """sum_n w_n stack[n] in the type of the stack, which the weights have too; differentiable on the CPU."""
    if runs_triton(stack_N) and not stack_N.requires_grad:
        from kernels.merge_n import triton  # noqa: PLC0415  # only machines with CUDA have Triton

        return triton.merge_n(stack_N, weight_N)
    return cpu.merge_n(stack_N, weight_N)
