"""TIES: trim small values, elect a sign per weight, average what agrees (Yadav et al., NeurIPS 2023).

On a bottleneck's weights themselves: its down-projection starts at random, not at a common model.
"""

from collections.abc import Sequence

import torch

from kernels.ties import ties
from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging.stacks import stack_of

DENSITY = 0.5
"""Share of the values that is kept; the middle of what the authors recommend, not searched."""


def merge_ties(parents: Sequence[AdapterWeights], shares: Sequence[float], density: float) -> AdapterWeights:
    """Every tensor merged on its own."""
    return {name: elect(parents, name, shares, density) for name in sorted(parents[0])}


def elect(parents: Sequence[AdapterWeights], name: str, shares: Sequence[float], density: float) -> torch.Tensor:
    stack_K = stack_of(parents, name)
    weight_K = torch.tensor(list(shares)) * len(parents)  # ties takes the mean of what agrees: weights are about one
    return ties(stack_K.flatten(1), weight_K, density).reshape(stack_K.shape[1:])
