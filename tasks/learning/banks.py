"""All adapters of a model in stacked slot tensors: what a mixed minibatch reads, and what loading writes by slot."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kernels.bank import Bank, clear_slot, grown, new_bank, read_slot, write_slot
from tasks.learning.adapters import AdapterWeights
from tasks.learning.backbones import Backbone
from tasks.learning.features import Start, num_states, run_pairs

Place = tuple[int, int]  # (rank, slot)


class AdapterBank:
    """Adapters by id, one bank of slots per rank: a merged adapter has its parents' ranks added up.

    Adding one costs a copy, whatever the number: a full bank doubles.
    """

    def __init__(self) -> None:
        self._banks: dict[int, Bank] = {}
        self._places: dict[str, Place] = {}

    def __contains__(self, adapter_id: object) -> bool:
        return adapter_id in self._places

    def write(self, adapter_id: str, weights: Mapping[str, Tensor]) -> None:
        """Copy an adapter into its slot, or into the first free one. Raises ValueError for a strange adapter."""
        rank = next(len(tensor) for name, tensor in weights.items() if name.endswith("down.bias"))
        if adapter_id in self._places and self._places[adapter_id][0] != rank:
            self.erase(adapter_id)
        bank = self._banks.setdefault(rank, new_bank(weights, 1))
        slot = self._places.get(adapter_id, (rank, self._free_slot(rank)))[1]
        if slot == _num_slots(bank):
            bank = self._banks[rank] = grown(bank, 2 * slot)
        write_slot(bank, slot, weights)
        self._places[adapter_id] = (rank, slot)

    def erase(self, adapter_id: str) -> None:
        """Overwrite an adapter with zeros and free its slot; the others stay where they are."""
        rank, slot = self._places.pop(adapter_id)
        clear_slot(self._banks[rank], slot)

    def read(self, adapter_id: str) -> AdapterWeights:
        """One adapter, as views of its slot."""
        rank, slot = self._places[adapter_id]
        return read_slot(self._banks[rank], slot)

    def features(
        self, backbone: Backbone, starts: Sequence[Start], cut: int, pairs: Sequence[tuple[int, str]]
    ) -> Tensor:
        """(P, F): head features of (record, adapter id) pairs, all adapters of one rank in one pass."""
        places = [self._places[adapter_id] for _, adapter_id in pairs]
        features_PF = torch.empty(len(pairs), backbone.width * num_states(backbone.num_blocks - cut))
        for rank in sorted({rank for rank, _ in places}):
            mine = [i for i, place in enumerate(places) if place[0] == rank]
            at_slots = [(pairs[i][0], places[i][1]) for i in mine]
            features_PF[mine] = run_pairs(backbone, starts, cut, self._banks[rank], at_slots)
        return features_PF

    def bytes(self) -> int:
        """Memory of all slots, free ones included."""
        return sum(stack.nbytes for bank in self._banks.values() for stack in bank.values())

    def _free_slot(self, rank: int) -> int:
        taken = {slot for other, slot in self._places.values() if other == rank}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)


def _num_slots(bank: Bank) -> int:
    return len(next(iter(bank.values())))


def stacked(adapters: Mapping[str, AdapterWeights]) -> AdapterBank:
    bank = AdapterBank()
    for adapter_id, weights in adapters.items():
        bank.write(adapter_id, weights)
    return bank
