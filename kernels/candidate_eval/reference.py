"""The definition: one pair after the other, each under the plain formula of its own adapter."""

# P pairs, T tokens, D features, K slots

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kernels.candidate_eval.blocks import Adapters, Block, Shared
from kernels.grouped_lora import Route


def candidate_eval(
    shared: Shared, blocks: Sequence[Block], adapters: Sequence[Adapters], route: Route, mask_PT: Tensor | None
) -> list[Tensor]:
    rows = []
    for p, slot in enumerate(route.slot_N.tolist()):
        mask_1T = None if mask_PT is None else mask_PT[p : p + 1]
        entered: Shared = tuple(tensor[p : p + 1] for tensor in shared)
        states: list[Tensor] = []
        for number, (block, places) in enumerate(zip(blocks, adapters, strict=True)):
            entered = block.enter(states[-1], mask_1T) if number else entered
            states.append(block.leave(entered, mask_1T, partial(_adapt, places, slot, route.scale_N11[p])))
        rows.append(states)
    return [torch.cat(states) for states in zip(*rows, strict=True)]


def _adapt(places: Adapters, slot: int, scale: Tensor, place: str, inputs_1TD: Tensor, base_1TO: Tensor) -> Tensor:
    if place not in places or slot < 0:
        return base_1TO
    down, up, down_bias, up_bias = places[place]
    if down_bias is None or up_bias is None:
        return base_1TO + scale * (inputs_1TD @ down[slot].T) @ up[slot].T
    return base_1TO + scale * (torch.relu(inputs_1TD @ down[slot].T + down_bias[slot]) @ up[slot].T + up_bias[slot])
