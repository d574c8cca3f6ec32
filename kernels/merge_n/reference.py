"""The definition: add one adapter after the other."""

# N adapters; any further dimensions

import torch
from torch import Tensor


def merge_n(stack_N: Tensor, weight_N: Tensor) -> Tensor:
    total = torch.zeros_like(stack_N[0])
    for tensor, weight in zip(stack_N, weight_N, strict=True):
        total = total + weight * tensor
    return total
