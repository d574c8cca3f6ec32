"""Streaming form for CUDA: a kernel tile lives in registers between the two products that need it."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# S pooled records, D features, P labelings; I, J tiles of S

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.aot import Config
from kernels.mmd_perm.cpu import combine


@triton.jit
def _mmd_kernel(
    z, norm, member, partial, row_sum, num_records, dim, num_labelings, gamma,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_i, in_p = i < num_records, p < num_labelings
    norm_i = tl.load(norm + i, mask=in_i, other=0.0)
    sums = tl.zeros((BLOCK_I,), tl.float32)
    kv = tl.zeros((BLOCK_I, BLOCK_P), tl.float32)
    for start in range(0, num_records, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        in_j = j < num_records
        product = tl.zeros((BLOCK_I, BLOCK_J), tl.float32)
        for first in range(0, dim, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            z_i = tl.load(z + i[:, None] * dim + d, mask=in_i[:, None] & (d < dim), other=0.0)
            z_j = tl.load(z + j[:, None] * dim + d, mask=in_j[:, None] & (d < dim), other=0.0)
            # tf32x3: a squared distance is a small difference, plain TF32 would keep three digits of it.
            product = tl.dot(z_i, tl.trans(z_j), product, input_precision="tf32x3")
        norm_j = tl.load(norm + j, mask=in_j, other=0.0)
        distance = norm_i[:, None] + norm_j[None, :] - 2 * product
        distance = tl.maximum(distance, 0.0, propagate_nan=tl.PropagateNan.ALL)
        other = (i[:, None] != j[None, :]) & in_i[:, None] & in_j[None, :]
        kernel = tl.where(other, tl.exp(-gamma * distance), 0.0)
        sums += tl.sum(kernel, 1)
        v_j = tl.load(member + j[:, None] * num_labelings + p, mask=in_j[:, None] & in_p, other=0.0)
        kv = tl.dot(kernel, v_j, kv, input_precision="tf32x3")
    v_i = tl.load(member + i[:, None] * num_labelings + p, mask=in_i[:, None] & in_p, other=0.0)
    tl.store(partial + tl.program_id(0) * num_labelings + p, tl.sum(v_i * kv, 0), mask=in_p)
    if tl.program_id(1) == 0:
        tl.store(row_sum + i, sums, mask=in_i)


CONFIG = Config(
    _mmd_kernel,
    "*fp32 *fp32 *fp32 *fp32 *fp32 i32 i32 i32 fp32",
    {"BLOCK_I": 64, "BLOCK_J": 32, "BLOCK_D": 16, "BLOCK_P": 64},
    num_warps=8,
)
SHIPPED = (CONFIG,)


def mmd_statistics(z_SD: Tensor, member_SP: Tensor, gamma: float) -> Tensor:
    """As the dispatcher's; computed in float32 whatever the type of z."""
    z_SD, member_SP = z_SD.float(), member_SP.float().contiguous()
    z_SD = (z_SD - z_SD.mean(0)).contiguous()
    num_records, num_labelings = member_SP.shape
    tiles = triton.cdiv(num_records, CONFIG.constants["BLOCK_I"])
    partial_IP = z_SD.new_empty(tiles, num_labelings)
    row_sum_S = z_SD.new_empty(num_records)
    grid = (tiles, triton.cdiv(num_labelings, CONFIG.constants["BLOCK_P"]))
    norm_S = z_SD.square().sum(1)
    outputs = (partial_IP, row_sum_S)
    sizes = (num_records, z_SD.shape[1], num_labelings)
    _mmd_kernel[grid](z_SD, norm_S, member_SP, *outputs, *sizes, gamma, **CONFIG.options)
    return combine(partial_IP.sum(0, dtype=torch.float64), row_sum_S.double(), member_SP)
