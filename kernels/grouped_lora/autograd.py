"""One autograd function for both forms: it saves the few hidden states and forms gradients per slot."""

# N records, T tokens, D in, O out, R rank, K slots

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.dispatch import runs_triton
from kernels.grouped_lora import cpu
from kernels.grouped_lora.cpu import Weights
from kernels.grouped_lora.route import MAX_RANK, Route


def form_for(x_NTD: Tensor, weights: Weights) -> ModuleType:
    if runs_triton(x_NTD, weights.down_KRD) and weights.down_KRD.shape[1] <= MAX_RANK:
        from kernels.grouped_lora import triton  # noqa: PLC0415  # only machines with CUDA have Triton

        return triton
    return cpu


class Grouped(torch.autograd.Function):
    """Gradients of x, base and the slot tensors; base's is the output's own."""

    @staticmethod
    def forward(
        ctx: Any, x_NTD: Tensor, base_NTO: Tensor, down_KRD: Tensor, up_KOR: Tensor, down_bias_KR: Tensor | None,
        up_bias_KO: Tensor | None, route: Route, relu: bool,
    ) -> Tensor:  # fmt: skip
        weights = Weights(down_KRD, up_KOR, down_bias_KR, up_bias_KO)
        output_NTO, hidden_NTR = form_for(x_NTD, weights).forward(x_NTD, weights, base_NTO, route, relu)
        ctx.save_for_backward(x_NTD, hidden_NTR, *weights)
        ctx.route, ctx.relu = route, relu
        return output_NTO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NTO: Tensor) -> tuple[Tensor | None, ...]:
        x_NTD, hidden_NTR, *saved = ctx.saved_tensors
        weights = Weights(*saved)
        form = form_for(x_NTD, weights)
        gradients = form.backward(grad_NTO, x_NTD, weights, hidden_NTR, ctx.route, ctx.relu)
        grad_x_NTD, *grad_weights = gradients
        return grad_x_NTD, grad_NTO, *grad_weights, None, None
