"""Cells and counts in one pass; integer atomics give the same counts in whatever order they land."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# N records, D dimensions, C cells

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.aot import Config
from kernels.dispatch import TRITON_DTYPES


@triton.jit
def _count_kernel(
    x, low, per_unit, counts, num_records, dims, num_cells, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_nd = (n[:, None] < num_records) & (d < dims)
    x_nd = tl.load(x + n[:, None] * dims + d, mask=in_nd, other=0.0).to(tl.float32)
    position = (x_nd - tl.load(low + d, mask=d < dims, other=0.0)) * tl.load(per_unit + d, mask=d < dims, other=0.0)
    # 1 is added behind the floor: before it, a sum that rounds, or a fused one, would move values at a cell's edge.
    cell = tl.where(position < 0, 0, tl.where(position < num_cells - 2, position, num_cells - 2).to(tl.int32) + 1)
    tl.atomic_add(counts + d * num_cells + cell, 1, mask=in_nd, sem="relaxed")


def _config(element: str) -> Config:
    constants = {"BLOCK_N": 32, "BLOCK_D": 64}
    return Config(_count_kernel, f"*{element} *fp32 *fp32 *i32 i32 i32 i32", constants, uses_tensor_cores=False)


CONFIGS = {element: _config(element) for element in TRITON_DTYPES.values()}
SHIPPED = tuple(CONFIGS.values())


def cell_counts(x_ND: Tensor, low_D: Tensor, per_unit_D: Tensor, num_cells: int) -> Tensor:
    x_ND = x_ND.contiguous()
    num_records, dims = x_ND.shape
    counts_DC = torch.zeros(dims, num_cells, dtype=torch.int32, device=x_ND.device)
    config = CONFIGS[TRITON_DTYPES[x_ND.dtype]]
    grid = (triton.cdiv(num_records, 32), triton.cdiv(dims, 64))
    tensors = (x_ND, low_D.float(), per_unit_D.float(), counts_DC)
    _count_kernel[grid](*tensors, num_records, dims, num_cells, **config.options)
    return counts_DC.to(torch.int64)
