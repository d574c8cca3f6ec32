"""Parents' tensors of one name, stacked: what the methods that work weight by weight have in common."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from tasks.learning.adapters import AdapterWeights


def stack_of(parents: Sequence[AdapterWeights], name: str) -> Tensor:
    """(K, ...). A parent of lower rank is filled up with hidden units that do nothing: it computes what it did.

    Ranks differ below a merge by `cat`, of nested ranks, and where a deletion chose another one for a parent.
    """
    tensors = [parent[name] for parent in parents]
    largest = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    return torch.stack([_filled(tensor, largest) for tensor in tensors])


def _filled(tensor: Tensor, largest: Sequence[int]) -> Tensor:
    missing = [(0, most - size) for size, most in zip(tensor.shape, largest, strict=True)]
    return pad(tensor, [count for both in reversed(missing) for count in both])
