"""A group's mixture (`composition: mix`): scan a shard, grow by shards in their order, and fit the looks it knows.

A mixture is one adapter of the catalog. Each shard that grew it is a stage with a checkpoint: a deletion keeps what
came before the first touched shard, and runs everything after it again, in the recorded order and blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from typing import Any

from torch import Tensor

from registry.errors import BadWeightsError
from registry.records import Adapter, MixtureScan, Shard
from registry.stream import Stream
from tasks import blobs
from tasks.backbones import adapter_spec, cut_of, open_backbone
from tasks.identity import seed_of
from tasks.learning.adapters import AdapterWeights
from tasks.learning.loops import Descent
from tasks.learning.mixing import (
    Looks,
    Rows,
    describe_shard,
    grow_mixture,
    looks_from_tensors,
    looks_to_tensors,
    scan_mixture,
)
from tasks.learning.sema import Scan, SemaOptions
from tasks.learning.tensors import NonFiniteError
from tasks.narration import say
from tasks.prefix_cache import states_of
from tasks.rows import Row, trainable
from tasks.shards import load_rows
from tasks.stopwatch import timing
from tasks.training import save_checkpoint

Encoded = Callable[[Shard], Sequence[tuple[Row, Tensor]]]
"""A shard's rows with their states at the cut."""

MINIBATCH = 16
WIDTHS_PER_DIRECTION = 6
"""SEMA's descriptors have 128 directions for a width of 768."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What is kept of one stage: the blocks that grew, and, where they were not prescribed, what the scan found."""

    shard: int
    blocks: tuple[int, ...]
    least: dict[str, float | None] = field(default_factory=dict)
    z_scores: dict[str, dict[str, float]] = field(default_factory=dict)


def options_of(stream: Stream) -> SemaOptions:
    layers = adapter_spec(stream).last_layers
    return SemaOptions(
        descent=Descent(stream.adapter.epochs, stream.adapter.learning_rate, minibatch=MINIBATCH),
        threshold=stream.mix.threshold,
        two_sided=stream.mix.two_sided,
        rank=stream.adapter.rank,
        descriptor_rank=max(1, open_backbone(stream).width // WIDTHS_PER_DIRECTION),
        watched=min(stream.mix.watched, layers),
        spare_held_out=True,
    )


def scan(stream: Stream, shard: Shard, known: Sequence[Adapter]) -> MixtureScan:
    """The shard's held-out rows, with or without a label, under the group's mixture; `known` are its adapters."""
    mixture = next((adapter for adapter in known if adapter.is_mixture), None)
    if mixture is None:
        return MixtureScan(None, {}, {})
    rows = [row for row in load_rows(shard) if row.held_out]
    if not rows:
        return MixtureScan(mixture.adapter_id, {}, {})
    backbone, weights = open_backbone(stream), blobs.load_tensors(mixture.node, "weights")
    where = (cut_of(stream, backbone), options_of(stream))
    shifts = scan_mixture(backbone, *where, weights, _load_looks(mixture), states_of(stream, rows))
    found = _told(mixture.adapter_id, Scan(shifts, ()))
    for layer, least in found.least.items():
        say(f"  layer {layer}: " + ("no descriptor" if least is None else f"z = {least:.2f}"))
    return found


def grow(
    stream: Stream,
    adapter: Adapter,
    shards: Sequence[Shard],
    *,
    epoch: int | None = None,
    fresh: Encoded | None = None,
) -> tuple[AdapterWeights, list[Grown]]:
    """The mixture after these shards, and what became of each. A shard that grew it before grows the same blocks.

    Stages whose checkpoint the adapter holds are not run again. With `fresh` states neither checkpoints nor anything
    else that is stored takes part: the reference of a comparison. Raises StaleEpochError at the next checkpoint where a
    ticket took effect since `epoch`.
    """
    weights, told, digest, recorded = dict[str, Tensor](), list[Grown](), "", recorded_growth(adapter)
    for shard in shards:
        before = recorded.get(shard.shard_id)
        blocks = _all_blocks(stream) if not weights else None if before is None else before.blocks
        kind = None if blocks is None or fresh is not None else _checkpoint(stream, digest, shard, blocks)
        known = None if kind is None else blobs.find(adapter.node, kind)
        if known is not None and blocks is not None:
            weights, grown = blobs.read_tensors(known.key, known.sha256), Grown(shard.shard_id, blocks)
        else:
            pairs = stored_pairs(stream, shard) if fresh is None else fresh(shard)
            weights, grown = _run_stage(stream, adapter, shard, pairs, weights, blocks)
        told.append(before if before is not None and before.blocks == grown.blocks else grown)
        digest = _checkpoint(stream, digest, shard, grown.blocks)
        if known is None and fresh is None:
            save_checkpoint(stream, adapter.group, adapter.node, digest, weights, epoch)
    return weights, told


@timing("training")
def _run_stage(
    stream: Stream,
    adapter: Adapter,
    shard: Shard,
    pairs: Sequence[tuple[Row, Tensor]],
    weights: AdapterWeights,
    blocks: Sequence[int] | None,
) -> tuple[AdapterWeights, Grown]:
    rows, backbone = _rows(pairs), open_backbone(stream)
    looks = _load_looks(adapter) if blocks is None else {}
    seed = seed_of("train", stream.name, _name(shard))
    say(f"  {adapter.adapter_id} grows by {shard.batch_name}: {len(rows.states)} rows")
    try:
        weights, found = grow_mixture(
            backbone, cut_of(stream, backbone), options_of(stream), weights, looks, rows, seed, blocks
        )
    except NonFiniteError as error:
        raise BadWeightsError(
            f"{adapter.adapter_id}: {error}; nothing was stored: start the stream under a new name with a lower "
            "adapter.learning_rate, or look for odd rows in the batch"
        ) from None
    scanned = _told(adapter.adapter_id, found)
    return weights, Grown(shard.shard_id, found.expanded, scanned.least, scanned.z_scores)


def recorded_growth(adapter: Adapter) -> dict[int, Grown]:
    """Shard -> what became of it, in the order of the stages."""
    noted = [Grown(**{**each, "blocks": tuple(each["blocks"])}) for each in adapter.recipe.get("grown", ())]
    return {each.shard: each for each in noted}


def checkpoints_of(stream: Stream, adapter: Adapter, shards: Sequence[Shard]) -> set[str]:
    """Kinds of the checkpoints that today's rows and recorded blocks lead to."""
    recorded, digest, kinds = recorded_growth(adapter), "", set[str]()
    for shard in shards:
        digest = _checkpoint(stream, digest, shard, recorded[shard.shard_id].blocks if kinds else _all_blocks(stream))
        kinds.add(digest)
    return kinds


def looks_of(
    stream: Stream, adapter: Adapter, weights: AdapterWeights, shards: Sequence[Shard], encoded: Encoded
) -> dict[str, Tensor]:
    """Descriptors of the shards that grew each watched block, all under the mixture as it is now, scores on held-out
    rows. A shard that has too few rows left has none."""
    backbone, recorded, looks = open_backbone(stream), recorded_growth(adapter), dict[int, list[Any]]()
    where = (cut_of(stream, backbone), options_of(stream))
    for shard in shards:
        rows = _rows(encoded(shard))
        if rows.can_be_described:
            found = describe_shard(backbone, *where, weights, rows, recorded[shard.shard_id].blocks)
            for block, descriptor in found.items():
                looks.setdefault(block, []).append(descriptor)
    return looks_to_tensors(looks)


def stored_pairs(stream: Stream, shard: Shard) -> list[tuple[Row, Tensor]]:
    rows = load_rows(shard)
    return list(zip(rows, states_of(stream, rows), strict=True))


def _load_looks(adapter: Adapter) -> Looks:
    return looks_from_tensors(blobs.load_tensors(adapter.node, "looks"))


def _rows(pairs: Sequence[tuple[Row, Tensor]]) -> Rows:
    labelled = [(row, state_TD) for row, state_TD in pairs if row.label is not None]
    held_out = [number for number, (row, _) in enumerate(labelled) if row.held_out]
    return Rows([state_TD for _, state_TD in labelled], [row.label or "" for row, _ in labelled], held_out)


def _all_blocks(stream: Stream) -> tuple[int, ...]:
    backbone = open_backbone(stream)
    return tuple(range(cut_of(stream, backbone), backbone.num_blocks))


def _name(shard: Shard) -> str:
    return f"{shard.batch_name}\x1f{shard.group}"


def _checkpoint(stream: Stream, before: str, shard: Shard, blocks: Sequence[int]) -> str:
    """Named by the recipe, the stage before, the blocks that grow, and the records that train."""
    records = [row.record for row in trainable(load_rows(shard))]
    about = [stream.recipe_digest, before, _name(shard), ",".join(map(str, blocks)), *records]
    digest = sha256("\n".join(about).encode()).hexdigest()
    return f"checkpoint:{digest}"


def _told(adapter_id: str, found: Scan) -> MixtureScan:
    """As it is written down: JSON knows no infinity. What decides is not rounded: training grows by it."""
    least = {str(b): s.least if isfinite(s.least) else None for b, s in found.shifts.items()}
    known = {str(b): s.z_scores for b, s in found.shifts.items() if s.z_scores}
    z_scores = {b: {f"{adapter_id}.{k}": z for k, z in by_number.items()} for b, by_number in known.items()}
    return MixtureScan(adapter_id, least, z_scores)
