"""Parents' tensors of one name, stacked: what the methods that work weight by weight have in common."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.learning.adapters import AdapterWeights


def stack_of(parents: Sequence[AdapterWeights], name: str) -> Tensor:
    """(K, ...). Raises ValueError where ranks differ: units without a counterpart cannot be averaged."""
    shapes = {tuple(parent[name].shape) for parent in parents}
    if len(shapes) > 1:
        raise ValueError(
            f"parents differ in rank ({name}: {sorted(shapes)}); merge them with operator 'cat', 'ot' or 'svd'"
        )
    return torch.stack([parent[name] for parent in parents])
