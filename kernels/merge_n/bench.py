"""Weighted sums of a model's adapters against PEFT's `linear`: `python -m kernels.merge_n.bench [--json]`."""

from collections.abc import Iterator
from functools import partial

import torch

from kernels.bench import Case, main
from kernels.bench_models import QV, Merged, adapted, add_adapters, factor_weights, new_m6, peft_merge, stacked, tensors
from kernels.merge_n import merge_n

BASELINE = "PEFT add_weighted_adapter(combination_type='linear')"


def our_merge(slots: Merged, weights: list[float]) -> Merged:
    weight_N = factor_weights(weights).to(slots[0][0])
    return [(merge_n(A, weight_N), merge_n(B, weight_N)) for A, B in slots]


def cases(device: torch.device) -> Iterator[Case]:
    for num in (16, 4, 64):
        model = add_adapters(new_m6(device=device), num, QV)
        slots = [stacked(module, num) for module in adapted(model).values()]
        weights = [(k + 1) / num for k in range(num)]
        yield Case(
            f"N={num} D=384 r=8, 12 modules",
            partial(peft_merge, model, weights, combination_type="linear"),
            partial(our_merge, slots, weights),
            partial(our_merge, slots, [w * 1.001 for w in weights]),
            tensors,
            bytes_moved=4 * 12 * (num + 1) * 8 * 2 * 384,
        )


if __name__ == "__main__":
    main("merge_n", BASELINE, cases)
