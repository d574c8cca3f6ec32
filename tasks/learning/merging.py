"""Merge bottleneck adapters exactly: the merged adapter computes the weighted sum of its parents' functions.

Laying hidden units side by side keeps the nonlinearity of every parent intact, where averaging weights would mix units
that have nothing to do with each other. The price is a rank that adds up.
"""

from collections.abc import Sequence

import torch

from tasks.learning.adapters import AdapterWeights


def merge_cat(parents: Sequence[AdapterWeights], shares: Sequence[float]) -> AdapterWeights:
    """sum_k shares[k] * f_k as one adapter of rank sum_k R_k; the same parents in the same order give the same bytes.

    Raises ValueError when the parents do not adapt the same blocks.
    """
    names = sorted(parents[0])
    if any(sorted(parent) != names for parent in parents) or len(parents) != len(shares):
        raise ValueError("parents of a merge adapt the same blocks, and each has a share")
    return {name: _merge_tensor(name, parents, shares) for name in names}


def _merge_tensor(name: str, parents: Sequence[AdapterWeights], shares: Sequence[float]) -> torch.Tensor:
    tensors = [parent[name] for parent in parents]
    if ".down." in name:
        return torch.cat(tensors, 0)
    weighted = [tensor * share for tensor, share in zip(tensors, shares, strict=True)]
    if name.endswith("up.weight"):
        return torch.cat(weighted, 1)
    return torch.stack(weighted).sum(0)
