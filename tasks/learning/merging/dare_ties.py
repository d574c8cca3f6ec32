"""DARE before TIES: drop values at random, scale up the rest, then elect signs (Yu et al., ICML 2024)."""

from collections.abc import Sequence

import torch

from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging.ties import DENSITY, elect
from tasks.learning.tensors import digest_of


def merge_dare_ties(parents: Sequence[AdapterWeights], shares: Sequence[float]) -> AdapterWeights:
    """Which values drop follows from the parents' bytes, so a replay drops the same.

    Raises ValueError where ranks differ.
    """
    thinned = [_thin(parent) for parent in parents]
    return {name: elect(thinned, name, shares, 1.0) for name in sorted(parents[0])}


def _thin(parent: AdapterWeights) -> AdapterWeights:
    generator = torch.Generator().manual_seed(int(digest_of(parent)[:15], 16))
    return {
        name: parent[name] * (torch.rand(parent[name].shape, generator=generator) < DENSITY) / DENSITY
        for name in sorted(parent)
    }
