"""One pass over the slots with a float32 sum in registers."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# N adapters, P values of each

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.aot import Config
from kernels.dispatch import TRITON_DTYPES


@triton.jit
def _sum_kernel(stack, weight, out, num_adapters, num_values, BLOCK_P: tl.constexpr):
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_p = p < num_values
    total = tl.zeros((BLOCK_P,), tl.float32)
    for n in range(num_adapters):
        value = tl.load(stack + n * num_values + p, mask=in_p, other=0.0)
        total += tl.load(weight + n) * value.to(tl.float32)
    tl.store(out + p, total, mask=in_p)


def _config(element: str) -> Config:
    return Config(_sum_kernel, f"*{element} *fp32 *{element} i32 i64", {"BLOCK_P": 1024}, uses_tensor_cores=False)


CONFIGS = {element: _config(element) for element in TRITON_DTYPES.values()}
SHIPPED = tuple(CONFIGS.values())


def merge_n(stack_N: Tensor, weight_N: Tensor) -> Tensor:
    """As the dispatcher's; half types are summed in float32."""
    stack_N, weight_N = stack_N.contiguous(), weight_N.float().contiguous()
    out = torch.empty_like(stack_N[0])
    config = CONFIGS[TRITON_DTYPES[stack_N.dtype]]
    _sum_kernel[(triton.cdiv(out.numel(), 1024),)](stack_N, weight_N, out, len(weight_N), out.numel(), **config.options)
    return out
