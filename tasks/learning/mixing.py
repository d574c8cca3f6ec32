"""A group's mixture as the pipeline keeps it: one set of tensors that grows by a shard, and the looks it knows.

Shapes: N records, T tokens, D width, K adapters of a block. Published source: SEMA (arXiv 2403.18886).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tasks.learning.adapters import AdapterWeights, adapter_blocks
from tasks.learning.backbones import Backbone
from tasks.learning.descriptors import Descriptor
from tasks.learning.router import Mixture
from tasks.learning.sema import Scan, Sema, SemaOptions, Shift, begin, describe, enter_suffix, grow, measure

Looks = Mapping[int, Sequence[Descriptor]]
"""Block -> descriptors of the shards that grew it, oldest first."""


@dataclass(frozen=True)
class Rows:
    """One shard: the states of its records entering the cut, their labels, and which of them are held out."""

    states: Sequence[Tensor]
    labels: Sequence[str]
    held_out: Sequence[int]

    @property
    def can_be_described(self) -> bool:
        """A descriptor needs two rows on either side."""
        return len(self.held_out) >= 2 and len(self.states) - len(self.held_out) >= 2


def grow_mixture(
    backbone: Backbone,
    cut: int,
    options: SemaOptions,
    mixture: AdapterWeights,
    looks: Looks,
    rows: Rows,
    seed: int,
    blocks: Collection[int] | None = None,
) -> tuple[AdapterWeights, Scan]:
    """The mixture after a shard, and what the scan found. An empty one gets an adapter in every block from the cut on.

    A later shard's scan goes from shallow to deep, and each deeper block is judged under what the shallower ones have
    grown. With `blocks` these grow, as was recorded, and nothing is measured. What was there is taken over unchanged.
    Raises NonFiniteError on divergence.
    """
    sema = _opened(backbone, cut, options, mixture, looks)
    if not mixture:
        scan = begin(sema, rows.states, rows.labels, rows.held_out, seed)
    else:
        scan = grow(sema, enter_suffix(sema, rows.states), rows.labels, rows.held_out, seed, blocks)
    grown = {name: tensor for each in sema.mixtures.values() for name, tensor in each.to_tensors().items()}
    return {name: grown[name].detach().contiguous() for name in sorted(grown)}, scan


def scan_mixture(
    backbone: Backbone, cut: int, options: SemaOptions, mixture: AdapterWeights, looks: Looks, states: Sequence[Tensor]
) -> dict[int, Shift]:
    """How unlike its shards held-out rows look to the mixture as it is, watched block by watched block."""
    sema = _opened(backbone, cut, options, mixture, looks)
    suffix_states = enter_suffix(sema, states)
    watched = range(sema.cut, backbone.num_blocks)
    return {block: measure(sema, suffix_states, block, range(len(states))) for block in watched}


def describe_shard(
    backbone: Backbone, cut: int, options: SemaOptions, mixture: AdapterWeights, rows: Rows, blocks: Collection[int]
) -> dict[int, Descriptor]:
    """Block -> what the shard looks like there under the whole mixture: closed form, scores on held-out rows."""
    sema = _opened(backbone, cut, options, mixture, {})
    suffix_states = enter_suffix(sema, rows.states)
    watched = range(sema.cut, backbone.num_blocks)
    return {block: describe(sema, suffix_states, block, rows.held_out) for block in watched if block in blocks}


def looks_to_tensors(looks: Looks) -> dict[str, Tensor]:
    return {
        f"{block}/{number}/{name}": tensor
        for block, known in looks.items()
        for number, descriptor in enumerate(known)
        for name, tensor in descriptor.to_tensors().items()
    }


def looks_from_tensors(tensors: Mapping[str, Tensor]) -> dict[int, list[Descriptor]]:
    found: dict[int, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        block, number, name = key.split("/")
        found.setdefault(int(block), {}).setdefault(int(number), {})[name] = tensor
    return {
        block: [Descriptor.from_tensors(known[number]) for number in sorted(known)]
        for block, known in sorted(found.items())
    }


def _opened(backbone: Backbone, cut: int, options: SemaOptions, mixture: AdapterWeights, looks: Looks) -> Sema:
    blocks = adapter_blocks(mixture)
    mixtures = {block: Mixture.from_tensors(mixture, block) for block in blocks}
    return Sema(backbone, options, mixtures, {block: list(known) for block, known in looks.items()}, begin=cut)
