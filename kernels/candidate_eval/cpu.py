"""What candidates share is computed once, and the last block runs for the first token alone where nothing else is read.

Tensors have N rows as long as candidates share them and K N rows, candidate by candidate, from the first adapter on.
"""

# N records, T tokens, D features, K candidates, X = N or K N rows, H heads

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.candidate_eval.blocks import Adapters, Block, Layer
from kernels.grouped_lora import Route, Weights, grouped_bottleneck, grouped_lora, route_records


def candidate_eval(
    states_NTD: Tensor, mask_NT: Tensor, blocks: Sequence[Block], adapters: Sequence[Adapters], scale_K: Tensor,
    first_only: bool,
) -> Tensor:  # fmt: skip
    num, num_records = len(scale_K), len(states_NTD)
    route = route_records(torch.arange(num, device=scale_K.device), scale_K)
    x_XTD = states_NTD
    for i, (block, places) in enumerate(zip(blocks, adapters, strict=True)):
        plan = _Plan(block, places, route, num_records, queries=1 if first_only and i == len(blocks) - 1 else None)
        x_XTD = plan.run(x_XTD, mask_NT)
    result_KNTD = plan.spread(x_XTD).unflatten(0, (num, num_records))
    return result_KNTD[:, :, 0] if first_only else result_KNTD


@dataclass(frozen=True)
class _Plan:
    """One block under every candidate; `queries` is how many first tokens go on from here, None for all."""

    block: Block
    places: Adapters
    route: Route
    num_records: int
    queries: int | None

    def run(self, x_XTD: Tensor, mask_NT: Tensor) -> Tensor:
        block = self.block
        inner = block.norm_1(x_XTD) if block.pre_norm else x_XTD
        attended = self.attend(
            self.at("query", block.query, inner[:, : self.queries]),
            self.at("key", block.key, inner),
            self.at("value", block.value, inner),
            mask_NT,
        )
        h = self.add(x_XTD[:, : self.queries], self.at("attention_output", block.attention_output, attended))
        h = h if block.pre_norm else block.norm_1(h)
        inner = block.norm_2(h) if block.pre_norm else h
        mlp = self.at("down", block.down, block.activation(self.at("up", block.up, inner)))
        if "mlp" in self.places:
            mlp = self.adapt(self.places["mlp"], h, mlp)
        y = self.add(h, mlp)
        return y if block.pre_norm else block.norm_2(y)

    def at(self, place: str, layer: Layer, inputs: Tensor) -> Tensor:
        base = layer(inputs)
        return self.adapt(self.places[place], inputs, base) if place in self.places else base

    def adapt(self, weights: Weights, inputs: Tensor, base: Tensor) -> Tensor:
        """All rows of a candidate are one record of N T tokens, so no weight is gathered twice."""
        inputs_KXD, base_KXO = (self.by_candidate(t) for t in (inputs, base))
        if weights.down_bias_KR is None:
            adapted = grouped_lora(inputs_KXD, weights.down_KRD, weights.up_KOR, self.route, base_KXO)
        else:
            adapted = grouped_bottleneck(inputs_KXD, weights, self.route, base_KXO)
        return adapted.view(-1, *base.shape[1:])

    def by_candidate(self, x: Tensor) -> Tensor:
        num = len(self.route.slot_N)
        if len(x) == self.num_records:
            return x.flatten(0, 1).expand(num, -1, -1)
        return x.reshape(num, -1, x.shape[2])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask_NT: Tensor) -> Tensor:
        if not len(q) == len(k) == len(v):
            q, k, v = (self.spread(t) for t in (q, k, v))
        q, k, v = (t.unflatten(2, (self.block.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask_X11T = None if bool(mask_NT.all()) else mask_NT.repeat(len(q) // self.num_records, 1)[:, None, None]
        return scaled_dot_product_attention(q, k, v, attn_mask=mask_X11T).transpose(1, 2).flatten(2)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b if len(a) == len(b) else self.spread(a) + self.spread(b)

    def spread(self, x: Tensor) -> Tensor:
        """K N rows, copied from N only where candidates still share them."""
        num = len(self.route.slot_N)
        return x if len(x) == num * self.num_records else x.expand(num, *x.shape).flatten(0, 1)
