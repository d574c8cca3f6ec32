"""Router-weighted sum of bottleneck adapters, sum_k w_k (up_k relu(down_k x + a_k) + c_k).

SEMA's mixture ("Self-Expansion of Pre-trained Models with Mixture of Adapters", CVPR 2025) as two matrix products.
"""

# N records, T tokens, D features, H hidden, K adapters

import torch
from torch import Tensor

from kernels.adapter_mixture import cpu
from kernels.dispatch import runs_triton

__all__ = ["adapter_mixture"]


def adapter_mixture(
    x_NTD: Tensor, weight_NK: Tensor, down_KHD: Tensor, down_bias_KH: Tensor, up_KDH: Tensor, up_bias_KD: Tensor
) -> Tensor:
    """(N, T, D) in the type of x, which all arguments have. Differentiable in all of them.

    Adapters that no record of the minibatch uses (a weight of 0 for all, as top-k masks leave) are dropped before any
    product: their values, NaN included, do not matter and they get no gradient, as behind a top-k mask. Training on
    CUDA runs the torch form; inference fuses bias, relu and router weight into the first product.
    """
    arguments = (weight_NK, down_KHD, down_bias_KH, up_KDH, up_bias_KD)
    used_K = (weight_NK != 0).any(0)
    if not bool(used_K.all()):
        used = used_K.nonzero()[:, 0]
        arguments = (weight_NK[:, used], down_KHD[used], down_bias_KH[used], up_KDH[used], up_bias_KD[used])
    if arguments[1].shape[0] == 0:
        return torch.zeros_like(x_NTD)
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (x_NTD, *arguments))
    if not trains and runs_triton(x_NTD, *arguments):
        from kernels.adapter_mixture import triton  # noqa: PLC0415  # only machines with CUDA have Triton

        return triton.adapter_mixture(x_NTD, *arguments)
    return cpu.adapter_mixture(x_NTD, *arguments)
