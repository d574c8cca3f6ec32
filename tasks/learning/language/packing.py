"""Documents side by side in rows of one context length, none seeing another.

Shapes: B rows, T tokens.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def chunk(tokens: Sequence[T], context: int) -> Iterator[Sequence[T]]:
    """Consecutive parts of at most `context` tokens."""
    return (tokens[first : first + context] for first in range(0, len(tokens), context))


def pack(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Rows of sequence numbers with at most `context` tokens each, in the order given (next fit).

    A row's content depends on the sequences before it alone. Raises ValueError for a sequence that fits no row.
    """
    rows: list[list[int]] = []
    room = 0
    for number, length in enumerate(lengths):
        if length > context:
            raise ValueError(f"a sequence of {length} tokens in rows of {context}; chunk it first")
        if length > room:
            rows.append([])
            room = context
        rows[-1].append(number)
        room -= length
    return rows


def within_documents(owner_BT: Tensor) -> Tensor:
    """(B, 1, T, T), to be added to attention scores: 0 where a token may see another, the lowest number elsewhere.

    A token sees those before it of its own sequence. `owner` is -1 for padding, which sees itself alone.
    """
    same_BTT = owner_BT[:, :, None] == owner_BT[:, None, :]
    width = owner_BT.shape[1]
    causal_TT = torch.ones(width, width).tril().bool()
    itself_TT = torch.eye(width).bool()
    seen_BTT = (same_BTT & causal_TT & (owner_BT >= 0)[:, :, None]) | itself_TT
    return torch.zeros(seen_BTT.shape).masked_fill(~seen_BTT, torch.finfo(torch.float32).min)[:, None]
