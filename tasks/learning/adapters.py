"""Bottleneck adapters parallel to the MLP: flat named tensors, as safetensors stores them.

Shapes: B rows, T tokens, D width, R rank. Published source: SEMA (arXiv 2403.18886), after AdaptFormer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.backbones import Backbone, Delta

AdapterWeights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    method: str = "bottleneck"
    rank: int = 16
    last_layers: int = 3


def new_adapter(backbone: Backbone, spec: AdapterSpec, seed: int) -> AdapterWeights:
    """Weights for the last layers: down Kaiming-uniform (a = sqrt 5), up and biases zero, so an exact no-op."""
    if spec.method != "bottleneck":
        raise ValueError(f"adapter method {spec.method!r}: use 'bottleneck'")
    if not 1 <= spec.last_layers <= backbone.num_blocks:
        raise ValueError(f"last_layers {spec.last_layers}: this backbone has {backbone.num_blocks} blocks")
    generator = torch.Generator().manual_seed(seed)
    weights: AdapterWeights = {}
    for block in range(backbone.num_blocks - spec.last_layers, backbone.num_blocks):
        bound = 1 / math.sqrt(backbone.width)
        uniform_RD = torch.rand(spec.rank, backbone.width, generator=generator)
        weights[f"blocks.{block}.down.weight"] = (uniform_RD * 2 - 1) * bound
        weights[f"blocks.{block}.down.bias"] = torch.zeros(spec.rank)
        weights[f"blocks.{block}.up.weight"] = torch.zeros(backbone.width, spec.rank)
        weights[f"blocks.{block}.up.bias"] = torch.zeros(backbone.width)
    return weights


def adapter_blocks(weights: Mapping[str, Tensor]) -> list[int]:
    """The numbers of the blocks that an adapter changes, ascending."""
    return sorted({int(name.split(".")[1]) for name in weights})


def apply_adapter(weights: Mapping[str, Tensor], block: int, hidden_BTD: Tensor) -> Tensor:
    """f(h) = W_up ReLU(W_down h + b_down) + b_up, per token."""
    name = f"blocks.{block}"
    inner_BTR = functional.linear(hidden_BTD, weights[f"{name}.down.weight"], weights[f"{name}.down.bias"]).relu()
    return functional.linear(inner_BTR, weights[f"{name}.up.weight"], weights[f"{name}.up.bias"])


def deltas_of(weights: Mapping[str, Tensor] | None, device: torch.device | None = None) -> dict[int, Delta]:
    """What to attach in each block; an empty mapping for the frozen backbone."""
    if not weights:
        return {}
    placed = {name: tensor.to(device) for name, tensor in weights.items()} if device is not None else dict(weights)
    return {block: _delta(placed, block) for block in adapter_blocks(placed)}


def _delta(weights: Mapping[str, Tensor], block: int) -> Delta:
    return lambda hidden_BTD: apply_adapter(weights, block, hidden_BTD)
