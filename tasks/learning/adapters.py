"""Bottleneck adapters parallel to the MLP: flat named tensors, as safetensors stores them.

Shapes: B rows, T tokens, D width, R rank. Published source: SEMA (arXiv 2403.18886), after AdaptFormer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels.adapter_mixture import adapter_mixture
from kernels.grouped_lora import Weights, grouped_bottleneck, route_to
from registry.errors import BadWeightsError
from tasks.learning.backbones import Backbone, Delta

AdapterWeights = dict[str, Tensor]

REMEDY = "it is neither stored nor served; train it again (a lower adapter.learning_rate where it diverged)"


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    method: str = "bottleneck"
    rank: int = 16
    last_layers: int = 3


def default_layers(depth: int) -> int:
    """Two thirds of the depth: adapters in the last quarter gain next to nothing (docs/decisions/0101)."""
    return max(1, round(depth * 2 / 3))


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


def check_weights(weights: Mapping[str, Tensor], blocks: Sequence[int], width: int, what: str) -> None:
    """Raise BadWeightsError, naming `what` and the tensor, for weights that do not fit the backbone or are not finite.

    A rank of its own per adapter is fine: a merge adds up its parents'."""
    rank = max((len(bias) for name, bias in weights.items() if name.endswith(".down.bias")), default=0)
    places = {"down.weight": (rank, width), "down.bias": (rank,), "up.weight": (width, rank), "up.bias": (width,)}
    wanted = {f"blocks.{block}.{place}": shape for block in blocks for place, shape in places.items()}
    if is_mixture(weights):
        wanted = _mixture_shapes(weights, blocks, width)
    if odd := sorted(weights.keys() ^ wanted.keys()):
        raise BadWeightsError(f"{what}: {len(odd)} tensors are missing or strange, first {odd[0]}; {REMEDY}")
    for name, tensor in weights.items():
        if tuple(tensor.shape) != wanted[name] or not tensor.is_floating_point():
            raise BadWeightsError(
                f"{what}: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected float {wanted[name]}; {REMEDY}"
            )
    check_finite(weights, what)


def _mixture_shapes(weights: Mapping[str, Tensor], blocks: Sequence[int], width: int) -> dict[str, tuple[int, ...]]:
    """Of K adapters and K router columns in every block, K a number of its own in each."""
    rank = max((tensor.shape[-1] for name, tensor in weights.items() if name.endswith(".down.bias")), default=0)
    wanted: dict[str, tuple[int, ...]] = {}
    for block in blocks:
        biases = weights.get(f"blocks.{block}.router.bias")
        count = 0 if biases is None else len(biases)
        places = {"down.weight": (rank, width), "down.bias": (rank,), "up.weight": (width, rank), "up.bias": (width,)}
        places |= {"router.weight": (width,), "router.bias": ()}
        wanted |= {f"blocks.{block}.{place}": (count, *shape) for place, shape in places.items()}
    return wanted


def check_finite(weights: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise BadWeightsError(f"{what}: {name} holds NaN or infinity; {REMEDY}")


def nested_ranks(rank: int) -> list[int]:
    """The ranks that a nested training serves, ascending: powers of two, and the whole."""
    return [*(2**n for n in range(rank.bit_length()) if 2**n < rank), rank]


def truncate(weights: Mapping[str, Tensor], rank: int) -> AdapterWeights:
    """The first `rank` hidden units alone, as views: an adapter of that rank, where ranks were trained nested."""
    return {
        name: tensor[:, :rank] if is_outwards(name) else tensor[:rank] if is_inwards(name) else tensor
        for name, tensor in weights.items()
    }


def is_inwards(name: str) -> bool:
    """Whether the tensor's rows are hidden units: a down-projection, LoRA's A, or a bias between the factors."""
    return ".down." in name or name.endswith("lora_A.weight")


def is_outwards(name: str) -> bool:
    """Whether the tensor's columns are hidden units."""
    return name.endswith(("up.weight", "lora_B.weight"))


def adapter_blocks(weights: Mapping[str, Tensor]) -> list[int]:
    """The numbers of the blocks that an adapter changes, ascending."""
    return sorted({int(name.split(".")[1]) for name in weights})


def deltas_of(weights: Mapping[str, Tensor] | None, device: torch.device | None = None) -> dict[int, Delta]:
    """What one adapter or one mixture adds to every row, block by block; nothing for the frozen backbone."""
    held = {name: tensor.to(device) for name, tensor in (weights or {}).items()}
    if is_mixture(held):
        return {block: mixed(*mixture_of(held, block)) for block in adapter_blocks(held)}
    bank = {name: tensor[None] for name, tensor in held.items()}
    return {block: _delta(places_of(bank, block)["mlp"]) for block in adapter_blocks(bank)}


def places_of(bank: Mapping[str, Tensor], block: int) -> dict[str, Weights]:
    """The slot tensors of one block as the kernels take them: a bottleneck beside the MLP."""
    names = ("down.weight", "up.weight", "down.bias", "up.bias")
    return {"mlp": Weights(*(bank[f"blocks.{block}.{name}"] for name in names))}


def is_mixture(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are SEMA's adapters of a layer side by side, (K, ..), with a router over them: see `router`."""
    return any(".router." in name for name in weights)


def mixture_of(weights: Mapping[str, Tensor], block: int) -> tuple[Tensor, Tensor, Weights]:
    """Router columns (K, D), their biases (K,) and the slot tensors of one block's adapters."""
    router_KD, bias_K = (weights[f"blocks.{block}.router.{name}"] for name in ("weight", "bias"))
    return router_KD, bias_K, places_of(weights, block)["mlp"]


def mixed(router_KD: Tensor, bias_K: Tensor, adapters: Weights) -> Delta:
    """sum_k softmax(router(mean over real tokens of h))_k f_k(h): SEMA's mixture, as two products."""

    def delta(hidden_BTD: Tensor, real_BT: Tensor | None = None) -> Tensor:
        if real_BT is None:
            mean_BD = hidden_BTD.mean(1)
        else:
            mean_BD = (hidden_BTD * real_BT[..., None]).sum(1) / real_BT.sum(1, keepdim=True)
        shares_BK = functional.linear(mean_BD, router_KD, bias_K).softmax(1)
        # never 0: an adapter that nobody uses would leave the product, whose shape decides the others' last bits
        shares_BK = shares_BK.clamp_min(torch.finfo(shares_BK.dtype).tiny)
        down, up, down_bias, up_bias = adapters
        assert down_bias is not None
        assert up_bias is not None
        return adapter_mixture(hidden_BTD, shares_BK, down, down_bias, up, up_bias)

    return delta


def _delta(weights: Weights) -> Delta:
    def delta(hidden_BTD: Tensor, _real_BT: Tensor | None = None) -> Tensor:
        with torch.autocast(hidden_BTD.device.type, enabled=False):  # the kernel takes one type
            cast = Weights(*(tensor.to(hidden_BTD.dtype) for tensor in weights if tensor is not None))
            return grouped_bottleneck(hidden_BTD, cast, route_to(0, hidden_BTD), torch.zeros_like(hidden_BTD))

    return delta
