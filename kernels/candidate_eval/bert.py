"""BERT's block in two halves, with LoRA where PEFT places it and, beside the feed-forward part, SEMA's bottleneck."""

# P pairs or N records, T tokens, D features, Q tokens that go on

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.candidate_eval.blocks import Adapt, Block, Shared


def bert_block(layer: Any, first_only: bool = False) -> Block:
    """The block of one `BertLayer` of transformers, dropout left out; places are "query", "key", "value",
    "attention_output", "up", "down" and "mlp".

    With `first_only` the first token alone goes on: exact in the last block where nothing else is read, as a class
    token; not for mean pooling or tagging. The layer's linears may be those that PEFT has wrapped.
    """
    halves = _Halves(layer, 1 if first_only else None)
    return Block(halves.enter, halves.leave)


@dataclass(frozen=True)
class _Halves:
    layer: Any
    queries: int | None

    def enter(self, x_PTD: Tensor, _mask_PT: Tensor | None) -> Shared:
        """Nothing before the three projections depends on an adapter of this block."""
        frozen = self.layer.attention.self
        return (x_PTD, _base(frozen.query)(x_PTD[:, : self.queries]), _base(frozen.key)(x_PTD),
                _base(frozen.value)(x_PTD))  # fmt: skip

    def leave(self, shared: Shared, mask_PT: Tensor | None, adapt: Adapt) -> Tensor:
        x_PTD, q_PQD, k_PTD, v_PTD = shared
        attention, x_PQD = self.layer.attention, x_PTD[:, : self.queries]
        q, k, v = (
            adapt(place, inputs, base).unflatten(2, (attention.self.num_attention_heads, -1)).transpose(1, 2)
            for place, inputs, base in (("query", x_PQD, q_PQD), ("key", x_PTD, k_PTD), ("value", x_PTD, v_PTD))
        )
        mask_P11T = None if mask_PT is None else mask_PT[:, None, None]
        attended_PQD = scaled_dot_product_attention(q, k, v, attn_mask=mask_P11T).transpose(1, 2).flatten(2)
        output = adapt("attention_output", attended_PQD, _base(attention.output.dense)(attended_PQD))
        h_PQD = attention.output.LayerNorm(output + x_PQD)
        wide = self.layer.intermediate
        hidden = wide.intermediate_act_fn(adapt("up", h_PQD, _base(wide.dense)(h_PQD)))
        mlp_PQD = adapt("mlp", h_PQD, adapt("down", hidden, _base(self.layer.output.dense)(hidden)))
        y_PQD: Tensor = self.layer.output.LayerNorm(mlp_PQD + h_PQD)
        return y_PQD


def _base(linear: Any) -> Any:
    return getattr(linear, "base_layer", linear)
