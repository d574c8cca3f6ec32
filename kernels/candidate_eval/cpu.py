"""All pairs go through a block together; the first block starts behind what its records share."""

# P pairs, T tokens, D features, K slots

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from kernels.candidate_eval.blocks import Adapters, Block, Shared
from kernels.grouped_lora import Route, grouped_bottleneck, grouped_lora


def candidate_eval(
    shared: Shared, blocks: Sequence[Block], adapters: Sequence[Adapters], route: Route, mask_PT: Tensor | None
) -> list[Tensor]:
    states: list[Tensor] = []
    for block, places in zip(blocks, adapters, strict=True):
        entered = block.enter(states[-1], mask_PT) if states else shared
        states.append(block.leave(entered, mask_PT, partial(_adapt, places, route)))
    return states


def _adapt(places: Adapters, route: Route, place: str, inputs_PTD: Tensor, base_PTO: Tensor) -> Tensor:
    weights = places.get(place)
    if weights is None:
        return base_PTO
    if weights.down_bias_KR is None:
        return grouped_lora(inputs_PTD, weights.down_KRD, weights.up_KOR, route, base_PTO)
    return grouped_bottleneck(inputs_PTD, weights, route, base_PTO)
