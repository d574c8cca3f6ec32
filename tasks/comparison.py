"""E0: make everything that a deletion rebuilt once more, from the inputs alone, and compare the bytes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

from torch import Tensor

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, suppression, tickets
from registry.artifacts import encode_tensors
from registry.records import Adapter, Shard, Ticket
from registry.stream import Stream
from tasks import blobs
from tasks.adapters import load_in_order
from tasks.learning.adapters import AdapterWeights
from tasks.learning.descriptors import fit_descriptor
from tasks.learning.merging import merge
from tasks.narration import say
from tasks.prefix_cache import encode
from tasks.rebuilding import block_evaluations, is_named
from tasks.retries import step
from tasks.rows import Row, held_out, trainable
from tasks.saga import Detail, once
from tasks.shards import REFERENCE_ROWS, as_reference, fit_statistics, load_rows, signatures_of
from tasks.training import train

Tensors = Mapping[str, Tensor]

SHARDS_IN_MEMORY = 16
"""Encoded shards kept for the next adapter that serves them."""


@step("compare-{together[0].ticket_id}")
def compare(stream: Stream, together: Sequence[Ticket], resolved: Detail, rebuilt: Detail) -> Detail:
    """Compare every rebuilt artifact with one made from scratch: weights, descriptors, statistics, merges.

    What was condemned and came out byte-equal is pardoned: it may serve. Nothing else lifts that.
    """

    def work() -> Detail:
        with database.transaction() as session:
            touched = [shard for shard in catalog.shards(session, resolved["shards"]) if shard.labelled]
        actions = {adapter: action for adapter, action in rebuilt["actions"].items() if action != "drop"}
        before = block_evaluations(stream)
        compared, proven = compare_artifacts(stream, touched, actions)
        if left := _rows_left(together, resolved):
            compared |= left  # what was made from these inputs shows nothing
        else:
            with database.transaction() as session:
                suppression.pardon(session, stream.name, proven)
        return {"compared": compared, "block_evaluations": block_evaluations(stream) - before}

    detail = once(together, "compare", work)
    for node, found in detail["compared"].items():
        answer = "byte-equal" if found["equal"] else f"DIFFERS in {', '.join(found['different'])}"
        say(f"  {node} against one made without the records, from scratch: {answer} ({found['artifacts']} artifacts)")
    return detail


def _rows_left(together: Sequence[Ticket], resolved: Detail) -> dict[str, Any]:
    """An entry for each shard whose stored rows still hold one that the tickets name: no artifact of it is clean."""
    with database.transaction() as session:
        targets = set(tickets.targets_of(session, *(ticket.ticket_id for ticket in together)))
        touched = catalog.shards(session, resolved["shards"])
    tainted = [shard.node for shard in touched if any(is_named(row, targets) for row in load_rows(shard))]
    return {f"{node}/rows": {"artifacts": 1, "different": ["rows"], "equal": False} for node in tainted}


def compare_artifacts(
    stream: Stream, touched: Sequence[Shard], actions: Mapping[str, str]
) -> tuple[dict[str, Any], set[str]]:
    """Node -> how many artifacts were compared, which differ, and the digest of all digests on both sides; beside it
    the digests of the artifacts that came out of the inputs alone.

    `actions` names the repaired adapters in the order of their repair, parents before children.
    """
    scratch, proven = Scratch(stream, [adapter for adapter, action in actions.items() if action != "refit"]), set[str]()
    compared = {shard.node: _compare(shard.node, dict(scratch.of_shard(shard)), proven) for shard in touched}
    for adapter_id, action in actions.items():
        with database.transaction() as session:
            adapter = adapter_rows.get_adapter(session, adapter_id)
        refit = [shard.shard_id for shard in touched] if action == "refit" else None
        compared[adapter.node] = _compare(adapter.node, dict(scratch.of_adapter(adapter, refit)), proven)
    return compared, proven


def _compare(node: str, scratch: Mapping[str, Tensors], proven: set[str]) -> dict[str, Any]:
    clean = {kind: sha256(encode_tensors(tensors)).hexdigest() for kind, tensors in scratch.items()}
    proven |= set(clean.values())
    stored = {kind: sha256(blobs.load_bytes(node, kind)).hexdigest() for kind in clean if blobs.find(node, kind)}
    different = sorted(kind for kind in clean if stored.get(kind) != clean[kind])
    return {
        "artifacts": len(clean),
        "rebuilt": _digest(stored),
        "from_scratch": _digest(clean),
        "different": different,
        "equal": not different,
    }


def _digest(digests: Mapping[str, str]) -> str:
    return sha256("\n".join(f"{kind} {digests[kind]}" for kind in sorted(digests)).encode()).hexdigest()


class Scratch:
    """Artifacts from rows alone: no checkpoint, no cached state, no stored tensor of anything that was rebuilt."""

    def __init__(self, stream: Stream, changed: Collection[str]) -> None:
        """`changed` names the adapters whose weights were rebuilt; what no dropped row shaped is taken as stored."""
        self.stream, self.changed = stream, changed
        self._weights: dict[str, AdapterWeights] = {}
        self._encoded = lru_cache(maxsize=SHARDS_IN_MEMORY)(self._encode)

    def of_shard(self, shard: Shard) -> Iterator[tuple[str, Tensors]]:
        yield "statistics", self._statistics(shard, None)
        kept = [(row, state) for row, state in self._encoded(shard) if held_out([row])][:REFERENCE_ROWS]
        seen_LND = signatures_of(self.stream, [state for _, state in kept])
        yield "reference", as_reference(seen_LND, [row for row, _ in kept])

    def of_adapter(self, adapter: Adapter, refit: Sequence[int] | None = None) -> Iterator[tuple[str, Tensors]]:
        """Everything of an adapter; with `refit` its statistics of these shards, which never shaped its weights."""
        weights = self.weights(adapter)
        if refit is None:
            yield "weights", weights
            yield "descriptor", self._descriptor(adapter)
        for shard in load_in_order(adapter.serves):
            if shard.labelled and (refit is None or shard.shard_id in refit):
                yield f"statistics:{shard.shard_id}", self._statistics(shard, weights)

    def weights(self, adapter: Adapter) -> AdapterWeights:
        """Trained from the inputs, or merged from parents that were: kept, for a parent may have several children."""
        if adapter.adapter_id not in self._weights:
            self._weights[adapter.adapter_id] = self._make(adapter)
        return self._weights[adapter.adapter_id]

    def _make(self, adapter: Adapter) -> AdapterWeights:
        if adapter.adapter_id not in self.changed:
            return blobs.load_tensors(adapter.node, "weights")
        if not adapter.parent_ids:
            return train(self.stream, adapter.node, load_in_order(adapter.shard_ids), from_scratch=True).adapter
        with database.transaction() as session:
            parents = [adapter_rows.get_adapter(session, parent_id) for parent_id in adapter.parent_ids]
        return merge(adapter.recipe, [self.weights(parent) for parent in parents])

    def _descriptor(self, adapter: Adapter) -> Tensors:
        own = sorted(load_in_order(adapter.shard_ids), key=lambda shard: shard.shard_id)
        pairs = [pair for shard in own for pair in self._encoded(shard)]
        train_LND, held_LND = (
            signatures_of(self.stream, [state for row, state in pairs if chosen([row])])
            for chosen in (trainable, held_out)
        )
        return fit_descriptor(train_LND, held_LND).to_tensors()

    def _statistics(self, shard: Shard, adapter: AdapterWeights | None) -> Tensors:
        used = [(row, state) for row, state in self._encoded(shard) if trainable([row])]
        rows, states = [row for row, _ in used], [state for _, state in used]
        return fit_statistics(self.stream, rows, states, adapter).to_tensors()

    def _encode(self, shard: Shard) -> list[tuple[Row, Tensor]]:
        rows = load_rows(shard)
        return list(zip(rows, encode(self.stream, rows), strict=True))
