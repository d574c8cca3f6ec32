"""Exact: the merged adapter computes the weighted sum of its parents' functions.

Laying hidden units side by side keeps the nonlinearity of every parent intact, where averaging weights would mix units
that have nothing to do with each other. The price is a rank that adds up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.learning.adapters import AdapterWeights, is_inwards, is_outwards


def merge_cat(parents: Sequence[AdapterWeights], shares: Sequence[float]) -> AdapterWeights:
    """sum_k shares[k] * f_k as one adapter of rank sum_k R_k."""
    return {name: _side_by_side(name, [parent[name] for parent in parents], shares) for name in sorted(parents[0])}


def _side_by_side(name: str, tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if is_inwards(name):
        return torch.cat(list(tensors), 0)
    weighted = [tensor * share for tensor, share in zip(tensors, shares, strict=True)]
    if is_outwards(name):
        return torch.cat(weighted, 1)
    return torch.stack(weighted).sum(0)
