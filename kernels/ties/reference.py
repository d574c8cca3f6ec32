"""The definition, value by value for each adapter: trim, elect a sign, average what agrees with it."""

# N adapters, P values of each

import torch
from torch import Tensor


def ties(stack_NP: Tensor, weight_N: Tensor, density: float) -> Tensor:
    kept = int(density * stack_NP.shape[1])
    trimmed_NP = torch.zeros_like(stack_NP)
    for n, value_P in enumerate(stack_NP):
        top = value_P.abs().topk(kept).indices
        trimmed_NP[n, top] = value_P[top]
    merged_P = torch.zeros_like(stack_NP[0])
    for p, value_N in enumerate(trimmed_NP.T):
        elected = 1 if value_N.sum() >= 0 else -1
        agrees_N = value_N.sign() == elected
        merged_P[p] = (weight_N * value_N)[agrees_N].sum() / max(1, int(agrees_N.sum()))
    return merged_P
