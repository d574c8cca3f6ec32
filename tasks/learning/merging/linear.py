"""Weighted average of the weights, hidden unit by hidden unit as they happen to be numbered (PEFT's `linear`).

Right for parents that began at the same weights and moved little; units of independent parents have nothing to do with
each other, and `ot` pairs them first.
"""

from collections.abc import Sequence

import torch

from kernels.merge_n import merge_n
from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging.stacks import stack_of


def merge_linear(parents: Sequence[AdapterWeights], shares: Sequence[float]) -> AdapterWeights:
    """sum_k shares[k] * w_k, of the largest parent's rank."""
    weight_K = torch.tensor(list(shares))
    return {name: merge_n(stack_of(parents, name), weight_K) for name in sorted(parents[0])}
