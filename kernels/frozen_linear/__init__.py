"""The linear layers of a frozen backbone on the CPU, through oneDNN instead of the BLAS that torch was built with.

PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 unused on processors of other makers; oneDNN (UXL
Foundation, https://github.com/uxlfoundation/oneDNN), which PyTorch carries too, writes code for the processor it finds.
Where there is no AVX-512, MKL is the faster one and stays. There is no Triton form: on CUDA this is cuBLAS. Reasons and
figures: docs/decisions/0206.
"""

# D in, O out; any leading shape, written N T here

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.frozen_linear import cpu

__all__ = ["freeze_linears", "frozen_linear"]

SMALLEST = 2**15
"""Weights of fewer elements stay with torch: there the call costs more than the product."""


def frozen_linear(x_NTD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W' + b, (..., O), in float32 accumulation; differentiable once, in x alone.

    Which form runs depends on the processor, the weights and the type of x, never on how many rows there are. A weight
    or bias that is trained, another type than float32, CUDA, processors without AVX-512 and builds without oneDNN take
    `torch.nn.functional.linear`.
    """
    if not _runs_onednn(x_NTD, weight_OD, bias_O):
        return functional.linear(x_NTD, weight_OD, bias_O)
    if torch.is_grad_enabled() and x_NTD.requires_grad:
        trained_NTO: Tensor = cpu.Frozen.apply(x_NTD, weight_OD, bias_O)
        return trained_NTO
    return cpu.linear(x_NTD, weight_OD, bias_O)


def _runs_onednn(x_NTD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> bool:
    return (
        x_NTD.device.type == "cpu"
        and x_NTD.dtype == weight_OD.dtype == torch.float32
        and weight_OD.numel() >= SMALLEST
        and not weight_OD.requires_grad
        and not (bias_O is not None and bias_O.requires_grad)
        and cpu.pays()
    )


class FrozenLinear(nn.Linear):
    """An `nn.Linear` by name, weights and type; it multiplies with `frozen_linear`."""

    def forward(self, x_NTD: Tensor) -> Tensor:
        return frozen_linear(x_NTD, self.weight, self.bias)


def freeze_linears(model: nn.Module) -> None:
    """Let every plain linear layer of a model multiply with `frozen_linear`; names and weights stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear
