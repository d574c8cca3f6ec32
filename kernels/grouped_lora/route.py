"""Who goes where: from the slot of every record to what the forms index with, worked out once per minibatch."""

# fields carry shape suffixes too
# N records, T tokens, K slots, M blocks of S rows

from typing import NamedTuple

import torch
from torch import Tensor

MAX_RANK = 32  # of the fused CUDA kernels, which hold all hidden states of a row in registers


class Route(NamedTuple):
    """Slots of a minibatch's records, -1 for the backbone alone; what the forms index with beside them.

    `index` is the slot, or 0 without one; `absent` lists records without one, None where there is no such record.
    """

    slot_N: Tensor
    index_N: Tensor
    absent: Tensor | None
    scale_N11: Tensor
    backbone_alone: bool

    def typed(self, like: Tensor) -> "Route":
        """The same route with scales in the type and on the device of `like`."""
        return self._replace(scale_N11=self.scale_N11.to(like))


def route_records(slot_N: Tensor, scale_K: Tensor) -> Route:
    """Route records to adapter slots; -1 means the backbone alone. Raises IndexError for a slot that does not exist."""
    slots = slot_N.tolist()
    if slots and not -1 <= min(slots) <= max(slots) < scale_K.shape[0]:
        raise IndexError(f"slots {sorted(set(slots))} of a bank of {scale_K.shape[0]}; -1 is the backbone alone")
    index_N = slot_N.clamp(min=0)
    absent = (slot_N < 0).nonzero()[:, 0] if -1 in slots else None
    return Route(slot_N, index_N, absent, scale_K[index_N][:, None, None], all(slot < 0 for slot in slots))


def route_to(slot: int, x_NTD: Tensor) -> Route:
    """All records of a minibatch to one slot, with scale 1: known without a look at the device."""
    index_N = torch.full((len(x_NTD),), slot, device=x_NTD.device)
    return Route(index_N, index_N, None, x_NTD.new_ones(len(x_NTD), 1, 1), False)


def block_rows(slot_T: Tensor, block: int = 16) -> tuple[Tensor, Tensor]:
    """Cut rows of mixed slots into blocks of one slot each: (row_MS, slot_M), a slot's last block padded with -1.

    For rows that do not come as records of equal length. At most K blocks are ragged, whatever the number of rows.
    """
    order_T = slot_T.argsort(stable=True)
    _, count_G = slot_T[order_T].unique_consecutive(return_counts=True)
    blocks_G = (count_G + block - 1) // block
    row_MS = order_T.new_full((int(blocks_G.sum()) * block,), -1)
    group_T = torch.repeat_interleave(torch.arange(len(count_G), device=slot_T.device), count_G)
    within_T = torch.arange(len(slot_T), device=slot_T.device) - (count_G.cumsum(0) - count_G)[group_T]
    row_MS[((blocks_G.cumsum(0) - blocks_G) * block)[group_T] + within_T] = order_T
    row_MS = row_MS.view(-1, block)
    return row_MS, slot_T[row_MS[:, 0]]
