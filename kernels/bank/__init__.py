"""The adapter bank: each tensor of an adapter stacked over slots, so that adding one costs a copy, whatever the number.

A bank is a dict with the names of an adapter's own tensors and a leading slot dimension: what the grouped kernels read.
There is one form only: a slot is written by a copy on any device, and read as a view.
"""

# K slots, N records

from collections.abc import Mapping

import torch
from torch import Tensor

Bank = dict[str, Tensor]


def new_bank(like: Mapping[str, Tensor], num_slots: int, device: torch.device | str = "cpu") -> Bank:
    """An empty bank (K, *shape) for adapters shaped like `like`; an empty slot is 0, which adapts nothing."""
    return {name: torch.zeros(num_slots, *t.shape, dtype=t.dtype, device=device) for name, t in like.items()}


def write_slot(bank: Bank, slot: int, adapter: Mapping[str, Tensor]) -> None:
    """Copy an adapter into a slot. Raises ValueError, before anything is written, when names or shapes differ."""
    if adapter.keys() != bank.keys():
        raise ValueError(f"slot {slot}: names differ from the bank's: {sorted(adapter.keys() ^ bank.keys())[:4]}")
    for name, tensor in adapter.items():
        if tensor.shape != bank[name].shape[1:]:
            raise ValueError(f"slot {slot}: {name} is {tuple(tensor.shape)}, the bank's {tuple(bank[name].shape[1:])}")
    with torch.no_grad():
        for name, tensor in adapter.items():
            bank[name][slot].copy_(tensor)


def read_slot(bank: Bank, slot: int) -> Bank:
    """The adapter in a slot, as views: writing to them writes to the bank."""
    return {name: stack[slot] for name, stack in bank.items()}


def clear_slot(bank: Bank, slot: int) -> None:
    """Overwrite a slot with 0: nothing of an erased adapter stays in memory."""
    for stack in bank.values():
        stack[slot].zero_()


def gather(bank: Bank, slot_N: Tensor) -> Bank:
    """The weights of each record's adapter, (N, *shape); slots from 0."""
    return {name: stack.index_select(0, slot_N) for name, stack in bank.items()}


def grown(bank: Bank, num_slots: int) -> Bank:
    """A bank with more slots and the same adapters in the first of them; double to keep adding one O(1) on average."""
    larger = new_bank({name: stack[0] for name, stack in bank.items()}, num_slots, next(iter(bank.values())).device)
    for name, stack in bank.items():
        larger[name][: len(stack)] = stack
    return larger
