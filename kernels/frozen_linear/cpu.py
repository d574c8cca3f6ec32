"""oneDNN's matrix product, the operation that torch's own compiler calls, and its gradient in x."""

# D in, O out; any leading shape, written N T here

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@cache
def is_available() -> bool:
    """Whether this build of torch carries oneDNN with the fused linear operation."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def pays() -> bool:
    """Whether it is the faster product: with AVX-512 alone. On AVX2 it takes a tenth to a third longer than MKL."""
    return is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def linear(x_NTD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    product_NTO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NTD, weight_OD, bias_O, "none", [], "")
    return product_NTO


class Frozen(torch.autograd.Function):
    """Nothing is saved but the weight itself."""

    @staticmethod
    def forward(ctx: Any, x_NTD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.weight_OD = weight_OD
        return linear(x_NTD, weight_OD, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NTO: Tensor) -> tuple[Tensor, None, None]:
        return linear(grad_NTO, ctx.weight_OD.T, None), None, None
