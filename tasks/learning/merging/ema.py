"""MOS's running average over the parents in their order: later ones count less than in a mean (arXiv 2412.09441)."""

from collections.abc import Sequence

from kernels.ema import ema
from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging.stacks import stack_of

RATE = 0.1


def merge_ema(parents: Sequence[AdapterWeights], shares: Sequence[float], rate: float) -> AdapterWeights:  # noqa: ARG001
    """The first parent, moved by `rate` towards each of the others; shares do not enter."""
    names = sorted(parents[0])
    stacks = [stack_of(parents, name) for name in names]
    averages = [stack_K[0].clone() for stack_K in stacks]
    for number in range(1, len(parents)):
        ema(averages, [stack_K[number] for stack_K in stacks], rate)
    return dict(zip(names, averages, strict=True))
