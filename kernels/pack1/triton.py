"""Unpacking where the weights are used; packing happens once, when an adapter is stored, and stays with torch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# K rows, M values, B bytes of a row

import triton
import triton.language as tl
from torch import Tensor

from kernels.aot import Config
from kernels.dispatch import TRITON_DTYPES


@triton.jit
def _unpack_kernel(bits, scale, out, num_values, num_bytes, BLOCK_M: tl.constexpr):
    k = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    byte = tl.load(bits + k * num_bytes + m // 8, mask=m < num_values, other=0).to(tl.int32)
    magnitude = tl.load(scale + k)
    tl.store(out + k * num_values + m, tl.where((byte >> (m % 8)) & 1 == 1, magnitude, -magnitude), mask=m < num_values)


def _config(element: str) -> Config:
    return Config(_unpack_kernel, f"*u8 *{element} *{element} i32 i32", {"BLOCK_M": 1024}, uses_tensor_cores=False)


CONFIGS = {element: _config(element) for element in TRITON_DTYPES.values()}
SHIPPED = tuple(CONFIGS.values())


def unpack1(bits_KB: Tensor, scale_K: Tensor, num_values: int) -> Tensor:
    bits_KB = bits_KB.contiguous()
    num_rows, num_bytes = bits_KB.shape
    out_KM = scale_K.new_empty(num_rows, num_values)
    config = CONFIGS[TRITON_DTYPES[scale_K.dtype]]
    grid = (num_rows, triton.cdiv(num_values, 1024))
    _unpack_kernel[grid](bits_KB, scale_K.contiguous(), out_KM, num_values, num_bytes, **config.options)
    return out_KM
