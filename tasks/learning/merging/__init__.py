"""Merging methods for bottleneck adapters and LoRA factors, by the names people know; a recipe replays byte for byte.

Shapes: K parents, R rank, D width. Every method takes parents in the recorded order and shares that sum to one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging.cat import merge_cat
from tasks.learning.merging.dare_ties import merge_dare_ties
from tasks.learning.merging.ema import merge_ema
from tasks.learning.merging.linear import merge_linear
from tasks.learning.merging.ot import merge_ot
from tasks.learning.merging.svd import merge_svd
from tasks.learning.merging.ties import merge_ties

OPERATORS: dict[str, Callable[[Sequence[AdapterWeights], Sequence[float]], AdapterWeights]] = {
    "cat": merge_cat,
    "linear": merge_linear,
    "ties": merge_ties,
    "dare_ties": merge_dare_ties,
    "ema": merge_ema,
    "ot": merge_ot,
    "svd": merge_svd,
}


def merge(recipe: Mapping[str, Any], parents: Sequence[AdapterWeights]) -> AdapterWeights:
    """Run a recipe: its `operator` and `shares`, on parents in the recorded order.

    Raises ValueError where the operator is unknown or the parents do not fit together.
    """
    operator, shares = recipe["operator"], recipe["shares"]
    if operator not in OPERATORS:
        raise ValueError(f"merge operator {operator!r}; choose one of {', '.join(OPERATORS)}")
    names = sorted(parents[0])
    if any(sorted(parent) != names for parent in parents) or len(parents) != len(shares):
        raise ValueError("parents of a merge adapt the same blocks, and each has a share")
    return {name: tensor.contiguous() for name, tensor in OPERATORS[operator](parents, shares).items()}
