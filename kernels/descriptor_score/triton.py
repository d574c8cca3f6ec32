"""Fused form for CUDA: the columns p and q of a descriptor stay in registers and only scores are written."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# L layers, K descriptors, T records or tokens, D features, H hidden

import triton
import triton.language as tl
from torch import Tensor

from kernels.aot import Config
from kernels.descriptor_score.cpu import Prepared
from kernels.dispatch import TRITON_DTYPES


@triton.jit
def _score_kernel(
    x, shift, weight, bias, score, num_tokens, dim, num_descriptors, hidden, num_columns,
    PCA: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    k, layer = tl.program_id(1), tl.program_id(2)
    x += layer.to(tl.int64) * num_tokens * dim
    weight += layer.to(tl.int64) * num_columns * dim
    bias += layer * num_columns
    centre_row = num_columns - num_descriptors + k
    total = tl.zeros((BLOCK_T,), tl.float32) + tl.load(bias + centre_row).to(tl.float32)
    # Wide descriptors are walked in blocks of H; the norm of x belongs to the first block alone.
    for first_hidden in range(0, hidden, BLOCK_H):
        h = first_hidden + tl.arange(0, BLOCK_H)
        row = k * hidden + h
        p = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
        q = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
        for first in range(0, dim, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            x_td = tl.load(x + t[:, None] * dim + d, mask=(t[:, None] < num_tokens) & (d < dim), other=0.0)
            x_td = (x_td - tl.load(shift + layer * dim + d, mask=d < dim, other=0.0)).to(weight.dtype.element_ty)
            in_hd = (h[:, None] < hidden) & (d < dim)
            w_p = tl.load(weight + row[:, None] * dim + d, mask=in_hd, other=0.0)
            p = tl.dot(x_td, tl.trans(w_p), p, input_precision=PRECISION)
            if not PCA:
                w_q = tl.load(weight + (num_descriptors * hidden + row)[:, None] * dim + d, mask=in_hd, other=0.0)
                q = tl.dot(x_td, tl.trans(w_q), q, input_precision=PRECISION)
            if first_hidden == 0:
                w_c = tl.load(weight + centre_row * dim + d, mask=d < dim, other=0.0).to(tl.float32)
                x_f32 = x_td.to(tl.float32)
                total += tl.sum(x_f32 * (x_f32 + w_c), 1)
        p += tl.load(bias + row, mask=h < hidden, other=0.0).to(tl.float32)
        if PCA:
            total -= tl.sum(p * p, 1)
        else:
            q += tl.load(bias + num_descriptors * hidden + row, mask=h < hidden, other=0.0).to(tl.float32)
            total += tl.sum(p * q, 1)
    target = score + (layer * num_descriptors + k).to(tl.int64) * num_tokens + t
    tl.store(target, tl.maximum(total / dim, 0.0, propagate_nan=tl.PropagateNan.ALL), mask=t < num_tokens)


def _config(element: str, pca: bool, block_h: int) -> Config:
    # 64, not 32: with the latter ptxas spills on sm_80 where a narrow PCA meets sizes that are multiples of 16
    constants = {"PCA": pca, "BLOCK_T": 64, "BLOCK_D": 16 if element == "fp32" else 64, "BLOCK_H": block_h,
                 "PRECISION": "tf32x3" if element == "fp32" else "ieee"}  # fmt: skip
    return Config(_score_kernel, f"*{element} " * 5 + "i32 i32 i32 i32 i32", constants, num_warps=8)


CONFIGS = {
    (element, pca, block_h): _config(element, pca, block_h)
    for element in TRITON_DTYPES.values()
    for pca in (False, True)
    for block_h in (16, 32)
}
SHIPPED = tuple(CONFIGS.values())


def descriptor_score(x_LTD: Tensor, prepared: Prepared) -> Tensor:
    """As the dispatcher's; products of float32 in three TF32 passes, scores accumulated in float32."""
    x_LTD = x_LTD.contiguous()
    num_layers, num_tokens, dim = x_LTD.shape
    score_LKT = x_LTD.new_empty(num_layers, prepared.num_descriptors, num_tokens)
    config = CONFIGS[TRITON_DTYPES[x_LTD.dtype], prepared.pca, 16 if prepared.hidden <= 16 else 32]
    grid = (triton.cdiv(num_tokens, config.constants["BLOCK_T"]), prepared.num_descriptors, num_layers)
    tensors = (x_LTD, prepared.shift_LD, prepared.weight_LMD, prepared.bias_LM, score_LKT)
    sizes = (num_tokens, dim, prepared.num_descriptors, prepared.hidden, prepared.weight_LMD.shape[1])
    _score_kernel[grid](*tensors, *sizes, **config.options)
    return score_LKT
