"""Merging methods for bottleneck adapters and LoRA factors, by the names people know; a recipe replays byte for byte.

Shapes: K parents, R rank, D width. Every method takes parents in the recorded order and shares that sum to one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging import ema, ties
from tasks.learning.merging.cat import merge_cat
from tasks.learning.merging.dare_ties import merge_dare_ties
from tasks.learning.merging.factors import is_lora
from tasks.learning.merging.linear import merge_linear
from tasks.learning.merging.ot import merge_ot
from tasks.learning.merging.svd import merge_svd
from tasks.learning.merging.updates import cut_to, updates_of

OPERATORS: dict[str, Callable[..., AdapterWeights]] = {
    "cat": merge_cat,
    "linear": merge_linear,
    "ties": ties.merge_ties,
    "dare_ties": merge_dare_ties,
    "ema": ema.merge_ema,
    "ot": merge_ot,
    "svd": merge_svd,
}
ON_UPDATES = ("linear", "ties", "dare_ties", "ema")
"""They work weight by weight: on what LoRA's factors compute together, for factors averaged alone give cross terms."""

UNWRITTEN = {"dtype": "float32", "density": 0.5, "rate": 0.1, "on": "factors"}
"""What recipes ran with before they said so. Never to be changed: a deletion replays them."""


def recipe_of(operator: str, shares: Sequence[float]) -> dict[str, Any]:
    """All that a merge follows from beside its parents' weights."""
    options: dict[str, Any] = {"on": "updates"} if operator in ON_UPDATES else {}
    if operator == "ema":
        options["rate"] = ema.RATE
    if operator in ("ties", "dare_ties"):
        options["density"] = ties.DENSITY
    return {"kind": "merged", "operator": operator, "shares": list(shares), "dtype": "float32", **options}


def merge(recipe: Mapping[str, Any], parents: Sequence[AdapterWeights]) -> AdapterWeights:
    """Run a recipe: its `operator` with its options and `shares`, on parents in the recorded order and dtype.

    LoRA is merged `on: updates`, or as PEFT has it, `on: factors`, also by recipes from before there was a choice.
    Raises ValueError where the operator is unknown or the parents do not fit together.
    """
    operator, shares, told = recipe["operator"], recipe["shares"], {**UNWRITTEN, **recipe}
    if operator not in OPERATORS:
        raise ValueError(f"merge operator {operator!r}; choose one of {', '.join(OPERATORS)}")
    names = sorted(parents[0])
    if any(sorted(parent) != names for parent in parents) or len(parents) != len(shares):
        raise ValueError("parents of a merge adapt the same blocks, and each has a share")
    options = {name: told[name] for name in recipe_of(operator, shares).keys() & {"density", "rate"}}
    dtype = getattr(torch, told["dtype"])
    cast = [{name: tensor.to(dtype) for name, tensor in parent.items()} for parent in parents]
    whole = operator in ON_UPDATES and is_lora(cast[0]) and told["on"] == "updates"
    merged = OPERATORS[operator](list(map(updates_of, cast)) if whole else cast, shares, **options)
    merged = cut_to(merged, cast[0]) if whole else merged
    # a copy: the only value of a slice passes for contiguous with the stride of its row, and has no bytes to digest
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in merged.items()}
