"""The states of a batch under every candidate adapter at once, for the decision to reuse or to expand.

A plan rather than one kernel: the frozen prefix is the caller's (usually cached), the projections before the first
adapter run once for all candidates, later ones run grouped through `kernels.grouped_lora`, and the last block runs for
the first token alone where the head reads no other. There is no Triton form of its own for that reason.
"""

# N records, T tokens, D features, K candidates

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.candidate_eval import cpu
from kernels.candidate_eval.blocks import Adapters, Block, bert_block

__all__ = ["Adapters", "Block", "bert_block", "candidate_eval"]


def candidate_eval(
    states_NTD: Tensor, blocks: Sequence[Block], adapters: Sequence[Adapters], scale_K: Tensor,
    mask_NT: Tensor | None = None, first_only: bool = True,
) -> Tensor:  # fmt: skip
    """States that leave the last block, (K, N, D) of the first token, or (K, N, T, D) without `first_only`.

    states: what enters the first of `blocks`, in one floating type with all weights. adapters: per block, slot tensors
    of K candidates by place. scale: of each candidate's update. mask: True where a token is real. `first_only` is exact
    only where nothing but the first token is read: not for mean pooling or tagging. Raises ValueError without blocks.
    """
    if not blocks or len(blocks) != len(adapters):
        raise ValueError(f"{len(blocks)} blocks and adapters for {len(adapters)}; give at least one, and one each")
    mask_NT = (
        torch.ones(states_NTD.shape[:2], dtype=torch.bool, device=states_NTD.device) if mask_NT is None else mask_NT
    )
    return cpu.candidate_eval(states_NTD, mask_NT, blocks, adapters, scale_K, first_only)
