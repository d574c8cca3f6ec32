"""Elect and merge in one kernel that reads the slots twice and stores nothing in between; torch selects thresholds."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# L tensors merged alike, N adapters, P values of each

import triton
import triton.language as tl
from torch import Tensor

from kernels.aot import Config
from kernels.dispatch import TRITON_DTYPES
from kernels.ties.cpu import thresholds


@triton.jit
def _ties_kernel(stack, threshold, weight, out, num_adapters, num_values, BLOCK_P: tl.constexpr):
    layer = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_p = p < num_values
    stack += layer * num_adapters * num_values
    threshold += layer * num_adapters
    total = tl.zeros((BLOCK_P,), tl.float32)
    for n in range(num_adapters):
        value = tl.load(stack + n * num_values + p, mask=in_p, other=0.0).to(tl.float32)
        total += tl.where(tl.abs(value) >= tl.load(threshold + n).to(tl.float32), value, 0.0)
    elected = tl.where(total >= 0, 1.0, -1.0)
    merged = tl.zeros((BLOCK_P,), tl.float32)
    count = tl.zeros((BLOCK_P,), tl.float32)
    for n in range(num_adapters):
        value = tl.load(stack + n * num_values + p, mask=in_p, other=0.0).to(tl.float32)
        agrees = (tl.abs(value) >= tl.load(threshold + n).to(tl.float32)) & (value * elected > 0)
        merged += tl.where(agrees, value * tl.load(weight + n), 0.0)
        count += agrees.to(tl.float32)
    tl.store(out + layer * num_values + p, merged / tl.where(count > 0, count, 1.0), mask=in_p)


def _config(element: str) -> Config:
    types = f"*{element} *{element} *fp32 *{element} i32 i32"
    return Config(_ties_kernel, types, {"BLOCK_P": 1024}, uses_tensor_cores=False)


CONFIGS = {element: _config(element) for element in TRITON_DTYPES.values()}
SHIPPED = tuple(CONFIGS.values())


def ties(stack_NP: Tensor, weight_N: Tensor, density: float) -> Tensor:
    """As the dispatcher's; half types are summed in float32."""
    stack_LNP = stack_NP.contiguous().view(-1, *stack_NP.shape[-2:])
    num_layers, num_adapters, num_values = stack_LNP.shape
    out_LP = stack_LNP.new_empty(num_layers, num_values)
    config = CONFIGS[TRITON_DTYPES[stack_NP.dtype]]
    arguments = (stack_LNP, thresholds(stack_LNP, density).contiguous(), weight_N.float().contiguous(), out_LP)
    _ties_kernel[triton.cdiv(num_values, 1024), num_layers](*arguments, num_adapters, num_values, **config.options)
    return out_LP.view(*stack_NP.shape[:-2], num_values)
