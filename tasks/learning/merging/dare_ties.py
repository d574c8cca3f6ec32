"""DARE before TIES: drop values at random, scale up the rest, then elect signs (Yu et al., ICML 2024)."""

from collections.abc import Sequence

import torch

from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging.ties import elect
from tasks.learning.tensors import digest_of


def merge_dare_ties(parents: Sequence[AdapterWeights], shares: Sequence[float], density: float) -> AdapterWeights:
    """Keeps `density` of the values; which drop follows from the parents' bytes, so a replay drops the same."""
    thinned = [thin(parent, density) for parent in parents]
    return {name: elect(thinned, name, shares, 1.0) for name in sorted(parents[0])}


def thin(parent: AdapterWeights, density: float) -> AdapterWeights:
    """Every value dropped with probability 1 - density, the others divided by it: the expectation stays."""
    generator = torch.Generator().manual_seed(int(digest_of(parent)[:15], 16))
    return {
        name: parent[name] * (torch.rand(parent[name].shape, generator=generator) < density) / density
        for name in sorted(parent)
    }
