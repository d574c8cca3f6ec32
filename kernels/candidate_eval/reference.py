"""The definition: one candidate after the other, every token through every block."""

# N records, T tokens, D features, K candidates, H heads

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.candidate_eval.blocks import Adapters, Block, Layer


def candidate_eval(
    states_NTD: Tensor, mask_NT: Tensor, blocks: Sequence[Block], adapters: Sequence[Adapters], scale_K: Tensor,
    first_only: bool,
) -> Tensor:  # fmt: skip
    results = []
    for k, scale in enumerate(scale_K):
        x_NTD = states_NTD
        for block, places in zip(blocks, adapters, strict=True):
            x_NTD = _run(x_NTD, mask_NT, block, places, k, scale)
        results.append(x_NTD[:, 0] if first_only else x_NTD)
    return torch.stack(results)


def _run(x_NTD: Tensor, mask_NT: Tensor, block: Block, places: Adapters, k: int, scale: Tensor) -> Tensor:
    def at(place: str, layer: Layer, inputs: Tensor) -> Tensor:
        if place not in places:
            return layer(inputs)
        weights = places[place]
        return layer(inputs) + scale * (inputs @ weights.down_KRD[k].T) @ weights.up_KOR[k].T

    inner = block.norm_1(x_NTD) if block.pre_norm else x_NTD
    q, k_, v = (
        at(place, layer, inner).unflatten(2, (block.heads, -1)).transpose(1, 2)
        for place, layer in [("query", block.query), ("key", block.key), ("value", block.value)]
    )
    score_NHTT = (q @ k_.mT / q.shape[-1] ** 0.5).masked_fill(~mask_NT[:, None, None], float("-inf"))
    attended_NTD = (score_NHTT.softmax(-1) @ v).transpose(1, 2).flatten(2)
    h_NTD = x_NTD + at("attention_output", block.attention_output, attended_NTD)
    h_NTD = h_NTD if block.pre_norm else block.norm_1(h_NTD)
    inner = block.norm_2(h_NTD) if block.pre_norm else h_NTD
    y_NTD = h_NTD + at("down", block.down, block.activation(at("up", block.up, inner)))
    if "mlp" in places:
        down, up, down_bias, up_bias = places["mlp"]
        assert down_bias is not None
        assert up_bias is not None
        y_NTD = y_NTD + scale * (torch.relu(h_NTD @ down[k].T + down_bias[k]) @ up[k].T + up_bias[k])
    return y_NTD if block.pre_norm else block.norm_2(y_NTD)
