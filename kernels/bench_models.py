"""The model that benches adapt: M6, a BERT of 6 layers x 384 with random weights, and PEFT adapters on it."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import BertConfig, BertModel

RANK = 8
ALPHA = 12  # scaling 1.5: with a power of two, rounding would hide a wrong scale

QV = ("query", "value")
ALL_LINEAR = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


def new_m6(layers: int = 6, dim: int = 384, device: torch.device | str = "cpu") -> BertModel:
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=dim, num_attention_heads=dim // 32, intermediate_size=4 * dim,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    model.to(torch.device(device))
    return model


def add_adapters(
    backbone: torch.nn.Module, num: int, targets: Sequence[str], layers: Sequence[int] | None = None
) -> PeftModel:
    """PEFT LoRA adapters a0, a1, .. with random A and B, so that every one of them changes the output."""
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(targets), init_lora_weights=False,
        layers_to_transform=list(layers) if layers is not None else None,
    )  # fmt: skip
    model = get_peft_model(backbone, config, adapter_name="a0")
    for k in range(1, num):
        model.add_adapter(f"a{k}", config)
    return model.eval()


def adapted(model: PeftModel) -> dict[str, Any]:
    """PEFT's LoRA layers by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def stacked(module: Any, num: int) -> tuple[Tensor, Tensor]:
    """One LoRA layer's adapters as slot tensors A (K, R, D) and B (K, O, R)."""
    A_KRD = torch.stack([module.lora_A[f"a{k}"].weight.detach() for k in range(num)])
    B_KOR = torch.stack([module.lora_B[f"a{k}"].weight.detach() for k in range(num)])
    return A_KRD, B_KOR


def frozen_weights(model: Any) -> dict[str, Tensor]:
    """The backbone's own weights, named as before PEFT wrapped it."""
    state = model.base_model.model.state_dict()
    return {name.replace("base_layer.", ""): value for name, value in state.items() if "lora_" not in name}


Merged = list[tuple[Tensor, Tensor]]


def peft_merge(model: Any, weights: list[float], **options: Any) -> Merged:
    """PEFT's own call. The merged adapter has to go again before the next one; that is about 2 % of the time."""
    names = [f"a{k}" for k in range(len(weights))]
    model.base_model.add_weighted_adapter(names, weights, "merged", **options)
    merged = [(m.lora_A["merged"].weight, m.lora_B["merged"].weight) for m in adapted(model).values()]
    model.base_model.delete_adapter("merged")
    return merged


def tensors(merged: Merged) -> tuple[Tensor, ...]:
    return tuple(tensor for pair in merged for tensor in pair)


def factor_weights(weights: list[float]) -> Tensor:
    """Weights of A and of B in PEFT's merges of factors: the square root of weight and scaling, on each side."""
    return (torch.tensor(weights) * (ALPHA / RANK)).sqrt()
