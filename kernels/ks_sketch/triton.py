"""Cells and counts in one pass; integer atomics give the same counts in whatever order they land."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# N records, D dimensions, C cells

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.aot import Config


@triton.jit
def _count_kernel(
    x, low, per_unit, counts, num_records, dims, NUM_CELLS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_nd = (n[:, None] < num_records) & (d < dims)
    x_nd = tl.load(x + n[:, None] * dims + d, mask=in_nd, other=0.0).to(tl.float32)
    position = (x_nd - tl.load(low + d, mask=d < dims, other=0.0)) * tl.load(per_unit + d, mask=d < dims, other=0.0)
    cell = tl.minimum(tl.maximum(position + 1.0, 0.0), NUM_CELLS - 1.0).to(tl.int32)
    tl.atomic_add(counts + d * NUM_CELLS + cell, 1, mask=in_nd, sem="relaxed")


def _config(element: str, num_cells: int) -> Config:
    constants = {"NUM_CELLS": num_cells, "BLOCK_N": 32, "BLOCK_D": 64}
    return Config(_count_kernel, f"*{element} *fp32 *fp32 *i32 i32 i32", constants, uses_tensor_cores=False)


SHIPPED = tuple(_config(element, 1024) for element in ("fp32", "bf16"))


def cell_counts(x_ND: Tensor, low_D: Tensor, per_unit_D: Tensor, num_cells: int) -> Tensor:
    x_ND = x_ND.contiguous()
    num_records, dims = x_ND.shape
    counts_DC = torch.zeros(dims, num_cells, dtype=torch.int32, device=x_ND.device)
    config = _config("fp32" if x_ND.dtype == torch.float32 else "bf16", num_cells)
    grid = (triton.cdiv(num_records, 32), triton.cdiv(dims, 64))
    _count_kernel[grid](x_ND, low_D.float(), per_unit_D.float(), counts_DC, num_records, dims, **config.options)
    return counts_DC.to(torch.int64)
