"""Merging a model's adapters into one of rank 8 against PEFT: `python -m kernels.lowrank_merge.bench [--json]`."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.bench import Case, main
from kernels.bench_models import ALPHA, QV, RANK, Merged, adapted, add_adapters, new_m6, peft_merge, stacked
from kernels.lowrank_merge import lowrank_merge

BASELINE = "PEFT add_weighted_adapter(combination_type='svd')"
PEFT_OPTIONS = {"combination_type": "svd", "svd_rank": RANK}


def our_merge(slots: Merged, weights: list[float]) -> Merged:
    weight_N = torch.tensor(weights, device=slots[0][0].device) * (ALPHA / RANK)
    return [lowrank_merge(weight_N, A, B, RANK) for A, B in slots]


def updates(merged: Merged) -> tuple[Tensor, ...]:
    return tuple(B @ A for A, B in merged)


def cases(device: torch.device) -> Iterator[Case]:
    for num, dim, layers in [(16, 384, 6), (4, 384, 6), (8, 1024, 2)]:
        model = add_adapters(new_m6(layers, dim, device), num, QV)
        slots = [stacked(module, num) for module in adapted(model).values()]
        weights = [(k + 1) / num for k in range(num)]
        off = [weight * (1.001 if k == num - 1 else 1) for k, weight in enumerate(weights)]
        for full_matrices in (True, False):
            yield Case(
                f"N={num} D={dim} r={RANK}, {len(slots)} modules{'' if full_matrices else ', full_matrices=False'}",
                partial(peft_merge, model, weights, **PEFT_OPTIONS, svd_full_matrices=full_matrices),
                partial(our_merge, slots, weights),
                partial(our_merge, slots, off),
                updates,
                tolerance=1e-4,
            )


if __name__ == "__main__":
    main("lowrank_merge", BASELINE, cases)
