"""States of pairs of a record and an adapter, behind what all adapters share: to reuse or to expand, and to answer.

A plan rather than one kernel: what no adapter can change is computed once per record, by the caller, who usually has it
cached; from there on every row is a pair, with its own adapter through `kernels.grouped_lora`, so that the number of
operations does not depend on that of adapters. The tokens that a head does not read are the block's own affair
(`bert_block(first_only=True)`). There is no Triton form of its own: what it calls has one.
"""

# P pairs, T tokens, D features, K slots

from collections.abc import Sequence

from torch import Tensor

from kernels.candidate_eval import cpu
from kernels.candidate_eval.bert import bert_block
from kernels.candidate_eval.blocks import Adapt, Adapters, Block, Shared, every_pair
from kernels.grouped_lora import Route

__all__ = ["Adapt", "Adapters", "Block", "Shared", "bert_block", "candidate_eval", "every_pair"]


def candidate_eval(
    shared: Shared, blocks: Sequence[Block], adapters: Sequence[Adapters], route: Route, mask_PT: Tensor | None = None
) -> list[Tensor]:
    """The states that leave each block, (P, T, D), or as many tokens as the block lets go on.

    shared: what `blocks[0].enter` gave for the record of each pair, in one floating type with all weights; adapters:
    per block, slot tensors (K, ..) by place; route: each pair's slot, -1 for the backbone alone; mask: True where a
    token is real, all of them without one. Differentiable in the slot tensors. Raises ValueError without blocks, or
    when adapters do not come one a block.
    """
    if not blocks or len(blocks) != len(adapters):
        raise ValueError(f"{len(blocks)} blocks and adapters for {len(adapters)}; give at least one, and one each")
    return cpu.candidate_eval(shared, blocks, adapters, route, mask_PT)
