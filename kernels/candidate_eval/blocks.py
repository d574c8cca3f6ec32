"""The frozen parts of an encoder block, and where adapters may sit in one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from kernels.grouped_lora import Weights

Layer = Callable[[Tensor], Tensor]

# Place in a block -> its slot tensors: LoRA at "query", "key", "value", "attention_output", "up" and "down"; at "mlp" a
# bottleneck beside the feed-forward part, on what enters its norm (SEMA, MOS).
Adapters = Mapping[str, Weights]


class Block(NamedTuple):
    """One transformer encoder block as callables; `pre_norm` as in ViT, without it as in BERT."""

    query: Layer
    key: Layer
    value: Layer
    attention_output: Layer
    norm_1: Layer
    up: Layer
    activation: Layer
    down: Layer
    norm_2: Layer
    heads: int
    pre_norm: bool = False


def bert_block(layer: Any) -> Block:
    """The block of one `BertLayer` of transformers, dropout left out: candidates are evaluated, not trained."""
    attention, output = layer.attention.self, layer.attention.output
    return Block(
        attention.query, attention.key, attention.value, output.dense, output.LayerNorm, layer.intermediate.dense,
        layer.intermediate.intermediate_act_fn, layer.output.dense, layer.output.LayerNorm,
        attention.num_attention_heads,
    )  # fmt: skip
