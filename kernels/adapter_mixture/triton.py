"""The first product with bias, relu and router weight applied in registers; the second is cuBLAS's."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# N records, T tokens, X = N T rows, D features, H hidden, K adapters, M = K H columns

import triton
import triton.language as tl
from torch import Tensor

from kernels.aot import Config
from kernels.dispatch import TRITON_DTYPES


@triton.jit
def _hidden_kernel(
    x, down, bias, weight, out, num_rows, tokens, dim, num_columns, hidden,
    PRECISION: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_X + tl.arange(0, BLOCK_X)
    column = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_row, in_column = row[:, None] < num_rows, column < num_columns
    sum_xm = tl.zeros((BLOCK_X, BLOCK_M), tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x_xd = tl.load(x + row[:, None] * dim + d, mask=in_row & (d < dim), other=0.0)
        w_dm = tl.load(down + column * dim + d[:, None], mask=in_column & (d[:, None] < dim), other=0.0)
        sum_xm = tl.dot(x_xd, w_dm, sum_xm, input_precision=PRECISION)
    sum_xm += tl.load(bias + column, mask=in_column, other=0.0).to(tl.float32)
    sum_xm = tl.maximum(sum_xm, 0.0, propagate_nan=tl.PropagateNan.ALL)
    # A column belongs to one adapter, a row to one record: their router weight is one gather.
    used = (row[:, None] // tokens) * (num_columns // hidden) + column // hidden
    sum_xm *= tl.load(weight + used, mask=in_row & in_column, other=0.0).to(tl.float32)
    tl.store(out + row[:, None] * num_columns + column, sum_xm, mask=in_row & in_column)


def _config(element: str) -> Config:
    half = element != "fp32"
    blocks = {"BLOCK_X": 64, "BLOCK_M": 64, "BLOCK_D": 64 if half else 16}
    constants = {"PRECISION": "ieee" if half else "tf32x3", **blocks}
    return Config(_hidden_kernel, f"*{element} " * 5 + "i32 i32 i32 i32 i32", constants, num_warps=8)


CONFIGS = {element: _config(element) for element in TRITON_DTYPES.values()}
SHIPPED = tuple(CONFIGS.values())


def adapter_mixture(
    x_NTD: Tensor, weight_NK: Tensor, down_KHD: Tensor, down_bias_KH: Tensor, up_KDH: Tensor, up_bias_KD: Tensor
) -> Tensor:
    """As the dispatcher's, without gradients."""
    x_NTD, weight_NK, down_KHD = (t.contiguous() for t in (x_NTD, weight_NK, down_KHD))
    (num_records, tokens, dim), (num_adapters, hidden, _) = x_NTD.shape, down_KHD.shape
    num_rows, num_columns = num_records * tokens, num_adapters * hidden
    config = CONFIGS[TRITON_DTYPES[x_NTD.dtype]]
    weighted_XM = x_NTD.new_empty(num_rows, num_columns)
    grid = (triton.cdiv(num_rows, 64), triton.cdiv(num_columns, 64))
    tensors = (x_NTD, down_KHD, down_bias_KH.contiguous(), weight_NK, weighted_XM)
    _hidden_kernel[grid](*tensors, num_rows, tokens, dim, num_columns, hidden, **config.options)
    mixed_NTD = (weighted_XM @ up_KDH.mT.flatten(0, 1)).view_as(x_NTD)
    return mixed_NTD + (weight_NK @ up_bias_KD)[:, None]
