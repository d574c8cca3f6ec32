"""All adapters of a model in stacked slot tensors: what a mixed minibatch reads, and what loading writes by slot."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kernels.bank import Bank, clear_slot, grown, new_bank, read_slot, write_slot
from tasks.learning.adapters import AdapterWeights, is_mixture
from tasks.learning.backbones import Backbone
from tasks.learning.features import Start, num_features, run_from, run_pairs

Place = tuple[int, int]  # (rank, slot)


class AdapterBank:
    """Adapters by id, one bank of slots per rank: a merged adapter has its parents' ranks added up. Mixtures lie beside
    the banks: the adapters of a layer are one product already.

    Adding one costs a copy, whatever the number: a full bank doubles.
    """

    def __init__(self) -> None:
        self._banks: dict[int, Bank] = {}
        self._places: dict[str, Place] = {}
        self._mixtures: dict[str, AdapterWeights] = {}

    def __contains__(self, adapter_id: object) -> bool:
        return adapter_id in self._places or adapter_id in self._mixtures

    def write(self, adapter_id: str, weights: Mapping[str, Tensor]) -> None:
        """Copy an adapter into its slot, or into the first free one. Raises ValueError for a strange adapter."""
        if is_mixture(weights):
            self._mixtures[adapter_id] = {name: tensor.clone() for name, tensor in weights.items()}
            return
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
        for tensor in self._mixtures.pop(adapter_id, {}).values():
            tensor.zero_()
        if adapter_id not in self._places:
            return
        rank, slot = self._places.pop(adapter_id)
        clear_slot(self._banks[rank], slot)

    def read(self, adapter_id: str) -> AdapterWeights:
        """One adapter, as views of its slot; or a mixture."""
        if adapter_id in self._mixtures:
            return self._mixtures[adapter_id]
        rank, slot = self._places[adapter_id]
        return read_slot(self._banks[rank], slot)

    def features(
        self, backbone: Backbone, starts: Sequence[Start], cut: int, pairs: Sequence[tuple[int, str]]
    ) -> Tensor:
        """(P, F): head features of (record, adapter id) pairs: a pass for the adapters of one rank, one per mixture.

        Raises KeyError for an adapter that is not here.
        """
        alone = [(i, adapter_id) for i, (_, adapter_id) in enumerate(pairs) if adapter_id not in self._mixtures]
        places = {i: self._places[adapter_id] for i, adapter_id in alone}
        features_PF = torch.empty(len(pairs), num_features(backbone.width, backbone.num_blocks - cut))
        for rank in sorted({rank for rank, _ in places.values()}):
            mine = [i for i, place in places.items() if place[0] == rank]
            at_slots = [(pairs[i][0], places[i][1]) for i in mine]
            features_PF[mine] = run_pairs(backbone, starts, cut, self._banks[rank], at_slots)
        for adapter_id in sorted({adapter_id for _, adapter_id in pairs} & set(self._mixtures)):
            mine = [i for i, (_, named) in enumerate(pairs) if named == adapter_id]
            own = [starts[pairs[i][0]] for i in mine]
            features_PF[mine] = run_from(backbone, own, cut, self._mixtures[adapter_id])
        return features_PF

    def bytes(self) -> int:
        """Memory of all slots, free ones included."""
        held = [*self._banks.values(), *self._mixtures.values()]
        return sum(tensor.nbytes for tensors in held for tensor in tensors.values())

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
