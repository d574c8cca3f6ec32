"""LoRA adapters through PEFT: the weights of one as PEFT names them, and a model that holds several.

Shapes: B rows, T tokens, D width, V vocabulary, R rank. Published source: LoRA (arXiv 2106.09685).
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from registry.errors import BadWeightsError, UnsupportedBackboneError
from tasks.learning.adapters import REMEDY, AdapterSpec, AdapterWeights, check_finite
from tasks.learning.language.backbones import Inputs, LanguageBackbone, shared_copy

# PEFT 0.21 asks transformers 5 under its old name
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

NAME = "default"
"""PEFT's own name of the first adapter."""

ALPHA = 2
"""Updates are scaled by this, whatever the rank."""


def lora_config(backbone: LanguageBackbone, spec: AdapterSpec) -> LoraConfig:
    """LoRA on every linear map of the last blocks, as PEFT's `adapter_config.json` says it."""
    first = backbone.num_blocks - spec.last_layers
    if spec.method != "lora" or first < 0:
        raise ValueError(
            f"adapter {spec.method!r} on {spec.last_layers} layers: use 'lora' on at most {backbone.num_blocks}"
        )
    _, blocks = shared_copy(backbone.model)
    maps = {name.rsplit(".", 1)[-1]: m for name, m in blocks[0].named_modules() if isinstance(m, nn.Linear | Conv1D)}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=ALPHA * spec.rank,
        lora_dropout=0.0,
        target_modules=sorted(maps),
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in maps.values()),  # GPT-2 keeps its weights transposed
        layers_to_transform=list(range(first, backbone.num_blocks)),
    )


class AdaptedModel:
    """A copy of the backbone with adapters in it. With a cut it starts from the states entering that block."""

    def __init__(self, backbone: LanguageBackbone, spec: AdapterSpec, cut: int | None = None) -> None:
        self.backbone, self.cut, self.config = backbone, cut, lora_config(backbone, spec)
        copied, self._blocks = shared_copy(backbone.model)
        self._entering_BTD: Tensor | None = None
        if cut is not None:
            for block in self._blocks[:cut]:
                block.forward = _pass_on
            self._blocks[cut].register_forward_pre_hook(self._enter, with_kwargs=True)
        try:
            self.peft: Any = get_peft_model(copied, self.config)
        except ValueError as error:
            raise UnsupportedBackboneError(
                f"{type(copied).__name__} takes no LoRA: {error}; use another model"
            ) from error
        frozen = self._blocks[: backbone.num_blocks - spec.last_layers]
        if any(isinstance(module, LoraLayer) for module in frozen.modules()):  # PEFT, for some mixtures of experts
            raise UnsupportedBackboneError(
                f"{type(copied).__name__} takes LoRA in all its blocks or in none; use another model"
            )
        self._held: set[str] = set()

    def names(self) -> list[str]:
        """The names of an adapter's tensors, as in PEFT's `adapter_model.safetensors`."""
        return sorted(get_peft_model_state_dict(self.peft, adapter_name=NAME))

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors of the first adapter by those names."""
        named = dict(self.peft.named_parameters())
        return {name: named[name.removesuffix("weight") + f"{NAME}.weight"] for name in self.names()}

    def load(self, name: str, weights: AdapterWeights) -> None:
        """Take in an adapter under a name. Raises BadWeightsError where the weights do not fit or are not finite."""
        self._check(name, weights)
        if name not in self._held and name != NAME:
            self.peft.add_adapter(name, self.config)
        set_peft_model_state_dict(self.peft, dict(weights), adapter_name=name)
        self._held.add(name)

    def _check(self, name: str, weights: AdapterWeights) -> None:
        wanted = {each: tuple(tensor.shape) for each, tensor in self.parameters().items()}
        if odd := sorted(weights.keys() ^ wanted.keys()):
            raise BadWeightsError(
                f"adapter {name}: {len(odd)} tensors are missing or strange, first {odd[0]}; {REMEDY}"
            )
        for each, shape in wanted.items():
            if tuple(weights[each].shape) != shape:
                raise BadWeightsError(
                    f"adapter {name}: {each} is {tuple(weights[each].shape)}, expected {shape}; {REMEDY}"
                )
        check_finite(weights, f"adapter {name}")

    @contextmanager
    def using(self, shares: Mapping[str, float]) -> Iterator[None]:
        """Answer under these adapters, their updates weighted by the shares; under none with an empty mapping."""
        if not shares:
            with self.peft.disable_adapter():
                yield
            return
        self.peft.base_model.set_adapter(list(shares))
        layers = [module for module in self.peft.modules() if isinstance(module, LoraLayer)]
        try:
            for name, share in shares.items():
                for layer in layers:
                    layer.set_scale(name, share)
            yield
        finally:
            for name in shares:
                for layer in layers:
                    layer.set_scale(name, 1.0)

    def logits(self, inputs: Inputs, states_BTD: Tensor | None = None) -> Tensor:
        """(B, T, V) next-token scores; with a cut, from the states entering it."""
        self._entering_BTD = states_BTD
        return self.peft(**inputs.as_arguments()).logits

    def _enter(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": self._entering_BTD}
        return (self._entering_BTD, *args[1:]), kwargs


def _pass_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


def new_lora(model: AdaptedModel, seed: int) -> AdapterWeights:
    """A Kaiming-uniform (a = sqrt 5), B zero, so an exact no-op; the bytes come from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in model.parameters().items()}
    return {name: _initial(name, shapes[name], generator) for name in sorted(shapes)}


def _initial(name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    if ".lora_B." in name:
        return torch.zeros(*shape)
    return (torch.rand(*shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])


def save_peft_folder(folder: Path, backbone: LanguageBackbone, spec: AdapterSpec, weights: AdapterWeights) -> None:
    """`adapter_config.json` and `adapter_model.safetensors`, as PEFT and LoRA servers take them."""
    folder.mkdir(parents=True, exist_ok=True)
    lora_config(backbone, spec).save_pretrained(str(folder))
    save_file(dict(sorted(weights.items())), folder / "adapter_model.safetensors", metadata={"format": "pt"})
