"""E0: make everything that a deletion rebuilt once more, from the inputs alone, and compare the bytes.

E1, where a device does not give the same bytes twice: what differs is made a third time, and may be no further from the
second than a few times what the second and the third are apart.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from platform import machine
from typing import Any

import torch
from torch import Tensor

from infra import database
from registry import adapters as adapter_rows
from registry import contents, ownership, suppression, tickets
from registry.artifacts import encode_tensors
from registry.errors import MissingObjectError
from registry.records import Adapter, Shard, Ticket
from registry.sections import Composition, TaskType
from registry.stream import Stream
from tasks import blobs, mixing
from tasks.adapters import load_in_order
from tasks.backbones import open_language
from tasks.devices import CPU, device_name, training_device
from tasks.forms import Form, choose_form
from tasks.learning.adapters import AdapterWeights
from tasks.learning.compression import decompress
from tasks.learning.descriptors import fit_descriptor
from tasks.learning.membership import is_near, leaning, trace_left
from tasks.learning.merging import merge
from tasks.narration import say
from tasks.policies.guarantee import ALARM, is_clean
from tasks.prefix_cache import encode
from tasks.rebuilding import block_evaluations, is_named
from tasks.retries import step
from tasks.rows import Row, held_out, trainable
from tasks.saga import Detail, once
from tasks.shards import REFERENCE_ROWS, as_reference, fit_statistics, load_rows, signatures_of
from tasks.training import train

Tensors = Mapping[str, Tensor]
Maker = Callable[[], Iterator[tuple[str, Tensors]]]

SHARDS_IN_MEMORY = 16
"""Encoded shards kept for the next adapter that serves them."""


@step("compare-{together[0].ticket_id}")
def compare(stream: Stream, together: Sequence[Ticket], resolved: Detail, rebuilt: Detail) -> Detail:
    """Compare every rebuilt artifact with one made from scratch: weights, descriptors, statistics, merges.

    What was condemned and came out byte-equal is pardoned: it may serve. Nothing else lifts that. What differs is
    condemned: no later version takes it up.
    """

    def work() -> Detail:
        with database.transaction() as session:
            touched = [shard for shard in contents.shards(session, resolved["shards"]) if shard.labelled]
        actions = {a: action for a, action in rebuilt["actions"].items() if action not in ("drop", "suppress")}
        before = block_evaluations(stream)
        compared, proven = compare_artifacts(stream, touched, actions, resolved["before"])
        left = _rows_left(together, resolved)
        if left:
            proven = set()  # what was made from these inputs shows nothing
        doubted = [node for node, found in compared.items() if left or not is_clean(found)]
        with database.transaction() as session:
            suppression.pardon(session, stream.name, proven)
            stored = {each.sha256 for each in ownership.objects_of(session, doubted)}
            suppression.condemn(session, stream.name, together[0].ticket_id, stored - proven)
        compared |= left
        work_done = block_evaluations(stream) - before
        return {"compared": compared, "block_evaluations": work_done, "environment": environment(stream)}

    detail = once(together, "compare", work)
    for node, found in detail["compared"].items():
        answer = "byte-equal" if found["equal"] else f"DIFFERS in {', '.join(found['different'])}"
        answer += ", by no more than another run does" if found.get("within_noise") else ""
        say(f"  {node} against one made without the records, from scratch: {answer} ({found['artifacts']} artifacts)")
    return detail


def _rows_left(together: Sequence[Ticket], resolved: Detail) -> dict[str, Any]:
    """An entry for each shard whose stored rows still hold one that the tickets name: no artifact of it is clean."""
    with database.transaction() as session:
        targets = set(tickets.targets_of(session, *(ticket.ticket_id for ticket in together)))
        touched = contents.shards(session, resolved["shards"])
    tainted = [shard.node for shard in touched if any(is_named(row, targets) for row in load_rows(shard))]
    return {f"{node}/rows": {"artifacts": 1, "different": ["rows"], "equal": False} for node in tainted}


def environment(stream: Stream) -> dict[str, Any]:
    """What bytes depend on beside recipe and rows."""
    device = device_name(device_of(stream))
    return {"device": device, "machine": machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def is_reproducible(stream: Stream) -> bool:
    """Whether training gives the same bytes twice here. Left to themselves, a GPU's kernels add up in any order."""
    return device_of(stream).type == CPU or torch.are_deterministic_algorithms_enabled()


def device_of(stream: Stream) -> torch.device:
    """What trains: a language model where it lies, a mixture on the CPU, other adapters on the device that is set."""
    if stream.composition == Composition.MIX:
        return torch.device(CPU)
    return open_language(stream).device if stream.task == TaskType.LANGUAGE else training_device()


def compare_artifacts(
    stream: Stream, touched: Sequence[Shard], actions: Mapping[str, str], before: Sequence[Mapping[str, Any]] = ()
) -> tuple[dict[str, Any], set[str]]:
    """Node -> how many artifacts were compared, which differ, and the digest of all digests on both sides; beside it
    the digests of the artifacts that came out of the inputs alone.

    `actions` names the repaired adapters in the order of their repair, parents before children; `before` the blobs that
    the deletion replaced: what of their trace is left in the weights is measured.
    """
    changed, proven = [adapter for adapter, action in actions.items() if action != "refit"], set[str]()
    scratch, again = Scratch(stream, changed), None if is_reproducible(stream) else Scratch(stream, changed)
    old = {stored["owner"]: (stored["key"], stored["sha256"]) for stored in before if stored["kind"] == "weights"}
    compared = dict[str, Any]()
    for shard in touched:
        makers = [partial(each.of_shard, shard) for each in (scratch, again) if each]
        compared[shard.node] = _compare(shard.node, makers, None, proven)
    for adapter_id, action in actions.items():
        with database.transaction() as session:
            adapter = adapter_rows.get_adapter(session, adapter_id)
        refit = [shard.shard_id for shard in touched] if action == "refit" else None
        makers = [partial(each.of_adapter, adapter, refit) for each in (scratch, again) if each]
        compared[adapter.node] = _compare(adapter.node, makers, old.get(adapter.node), proven)
    return compared, proven


def _compare(node: str, makers: Sequence[Maker], old: tuple[str, str] | None, proven: set[str]) -> dict[str, Any]:
    made = dict(makers[0]())
    clean = {kind: sha256(encode_tensors(tensors)).hexdigest() for kind, tensors in made.items()}
    proven |= set(clean.values())
    stored = {kind: sha256(blobs.load_bytes(node, kind)).hexdigest() for kind in clean if blobs.find(node, kind)}
    different = sorted(kind for kind in clean if stored.get(kind) != clean[kind])
    found = {
        "artifacts": len(clean),
        "rebuilt": _digest(stored),
        "from_scratch": _digest(clean),
        "different": different,
        "equal": not different,
    }
    removed = _load_removed(old) if old and "weights" in stored else None
    if removed is not None and _shapes(removed) != _shapes(decompress(made["weights"])):
        removed = None  # another rank was chosen: no direction to compare along
    if removed is not None:
        served = [decompress(tensors) for tensors in (blobs.load_tensors(node, "weights"), made["weights"])]
        found["trace"] = _trace(trace_left(served[0], removed, served[1]))
    if different and len(makers) > 1 and set(different) <= set(stored):
        found["within_noise"] = _within_noise(node, different, made, dict(makers[1]()), removed)
    return found


def _load_removed(old: tuple[str, str]) -> Tensors | None:
    """The weights as they served before; None where they were purged already (the ticket is worked again)."""
    try:
        return decompress(blobs.read_tensors(*old))
    except MissingObjectError:
        return None


def _shapes(weights: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _trace(found: tuple[float, float] | None) -> dict[str, float] | None:
    return None if found is None else {"share": found[0], "z": found[1]}


def _within_noise(
    node: str,
    different: Sequence[str],
    made: Mapping[str, Tensors],
    again: Mapping[str, Tensors],
    removed: Tensors | None,
) -> bool:
    """Whether what is stored could be one more run. Its weights must not lean towards the removed ones, each side
    measured against a reference of its own: what both share would look like a trace."""
    near = all(is_near(blobs.load_tensors(node, kind), made[kind], again[kind]) for kind in different)
    if not near or "weights" not in different:
        return near
    weights, first, second = (
        decompress(each) for each in (blobs.load_tensors(node, "weights"), made["weights"], again["weights"])
    )
    return removed is not None and leaning(weights, removed, first, second) < ALARM


def _digest(digests: Mapping[str, str]) -> str:
    return sha256("\n".join(f"{kind} {digests[kind]}" for kind in sorted(digests)).encode()).hexdigest()


class Scratch:
    """Artifacts from rows alone: no checkpoint, no cached state, no stored tensor of anything that was rebuilt."""

    def __init__(self, stream: Stream, changed: Collection[str]) -> None:
        """`changed` names the adapters whose weights were rebuilt; what no dropped row shaped is taken as stored."""
        self.stream, self.changed = stream, changed
        self._forms: dict[str, Form] = {}
        self._encoded = lru_cache(maxsize=SHARDS_IN_MEMORY)(self._encode)

    def of_shard(self, shard: Shard) -> Iterator[tuple[str, Tensors]]:
        yield "statistics", self._statistics(shard, None)
        kept = [(row, state) for row, state in self._encoded(shard) if held_out([row])][:REFERENCE_ROWS]
        seen_LND = signatures_of(self.stream, [state for _, state in kept])
        yield "reference", as_reference(seen_LND, [row for row, _ in kept])

    def of_adapter(self, adapter: Adapter, refit: Sequence[int] | None = None) -> Iterator[tuple[str, Tensors]]:
        """Everything of an adapter; with `refit` its statistics of these shards, which never shaped its weights."""
        form = self.form(adapter)
        if refit is None:
            yield "weights", form.stored
            yield "descriptor", self._descriptor(adapter)
            if adapter.is_mixture:
                own = load_in_order(adapter.shard_ids)
                yield "looks", mixing.looks_of(self.stream, adapter, form.weights, own, self._encoded)
        for shard in load_in_order(adapter.serves):
            if shard.labelled and (refit is None or shard.shard_id in refit):
                yield f"statistics:{shard.shard_id}", self._statistics(shard, form.weights)

    def form(self, adapter: Adapter) -> Form:
        """Trained from the inputs, or merged from parents that were: kept, for a parent may have several children."""
        if adapter.adapter_id not in self._forms:
            self._forms[adapter.adapter_id] = self._make(adapter)
        return self._forms[adapter.adapter_id]

    def _make(self, adapter: Adapter) -> Form:
        if adapter.adapter_id not in self.changed:
            stored = blobs.load_tensors(adapter.node, "weights")
            return Form(stored, decompress(stored), {})
        return choose_form(self.stream, self._weights(adapter), lambda: self._pairs(adapter))

    def _weights(self, adapter: Adapter) -> AdapterWeights:
        if adapter.is_mixture:
            return mixing.grow(self.stream, adapter, load_in_order(adapter.shard_ids), fresh=self._encoded)[0]
        if not adapter.parent_ids:
            return train(self.stream, adapter.node, load_in_order(adapter.shard_ids), from_scratch=True).adapter
        with database.transaction() as session:
            parents = [adapter_rows.get_adapter(session, parent_id) for parent_id in adapter.parent_ids]
        return merge(adapter.recipe, [self.form(parent).weights for parent in parents])

    def _pairs(self, adapter: Adapter) -> list[tuple[Row, Tensor]]:
        own = sorted(load_in_order(adapter.shard_ids), key=lambda shard: shard.shard_id)
        return [pair for shard in own for pair in self._encoded(shard)]

    def _descriptor(self, adapter: Adapter) -> Tensors:
        pairs = self._pairs(adapter)
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
