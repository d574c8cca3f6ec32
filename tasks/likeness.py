"""Which adapters are close enough to merge: how their shards look to each other, and whether they answer alike."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from infra import database
from registry import adapters as adapter_rows
from registry import contents, decision_log, lineage
from registry.records import Adapter, AdapterState, DecisionKind, labels_of
from registry.stream import Stream
from registry.tables import DecisionRow
from tasks import blobs
from tasks.assembly import current_manifest, load_model
from tasks.backbones import open_backbone
from tasks.learning.composition import ServingModel, compose, predict
from tasks.learning.descriptors import Descriptor, shift_and_density, side_by_side
from tasks.learning.tensors import tensor_to_labels
from tasks.narration import say
from tasks.policies.merging import Excess, Likeness, Pair, closest_first, mergeable_pairs
from tasks.prefix_cache import states_of
from tasks.retries import step
from tasks.rows import held_out
from tasks.shards import load_reference, load_rows
from tasks.shift import KNOWN
from tasks.suffix_memory import REMEMBERED

SHORT_LIST = 6
"""Pairs whose agreement is measured; the descriptors choose them, since answering costs passes and heads."""
SCORED_ROWS, ANSWERED_ROWS = 16, 128
"""Held-out rows of an adapter that descriptors score, and that are answered for a measure of agreement."""


@step("propose-merges-{stream.name}")
def propose_merges(stream: Stream, excess: Excess | None = None) -> list[tuple[Pair, Likeness]]:
    """Pairs that may be merged, closest first: of the serving adapters over budget, or of all that are known.

    Adapters of documents and mixtures are never proposed. Under `excess`, what was refused before is not proposed
    again until one of the two serves another shard, or the stream asks for another operator or `merge_drop`.
    """
    if not stream.consolidates:
        return []
    with database.transaction() as session:
        states = KNOWN if excess is None else [AdapterState.SERVING]
        known = [
            a
            for a in adapter_rows.adapters(session, stream.name, states)
            if excess is None or a.adapter_id in excess.serving
        ]
        depth = {a.adapter_id: lineage.merge_depth(session, a.adapter_id) for a in known}
        refused = [] if excess is None else _refused(stream, decision_log.decisions(session, stream.name))
    pairs = mergeable_pairs(known, depth, stream.merge_across, refused)
    if not pairs:
        return []
    by_id = {adapter.adapter_id: adapter for adapter in known}
    likeness = likeness_of(known, pairs)
    short = closest_first(likeness)[:SHORT_LIST]
    agreed = agreements(stream, [by_id[name] for name in dict.fromkeys(name for pair in short for name in pair)], short)
    measured = {pair: replace(likeness[pair], agreement=agreed[pair]) for pair in short}
    for a, b in (ordered := closest_first(measured)):
        say(f"  {a} and {b}: {measured[a, b].reason}")
    return [(pair, measured[pair]) for pair in ordered]


def _refused(stream: Stream, decisions: Sequence[DecisionRow]) -> list[tuple[Pair, int]]:
    """Pairs, oldest first, that were refused under today's rules, with the number of shards that they served then."""
    operator, drop = stream.consolidation.operator, stream.gates.merge_drop
    told = [d.numbers for d in decisions if d.kind == DecisionKind.KEEP and len(d.numbers.get("parents", ())) == 2]
    # refusals from before they said under which gate count under every one
    same = [n for n in told if (n["operator"], n.get("merge_drop", drop)) == (operator, drop)]
    pairs = [(sorted(n["parents"], key=lineage.by_number), n["cohort"]) for n in same]
    return [((first, second), cohort) for (first, second), cohort in pairs]


def likeness_of(adapters: Sequence[Adapter], pairs: Sequence[Pair]) -> dict[Pair, Likeness]:
    """What the descriptors say, all against all in one product."""
    looks = {a.adapter_id: Descriptor.from_tensors(blobs.load_tensors(a.node, "descriptor")) for a in adapters}
    seen = {a.adapter_id: _seen_by(a) for a in adapters}
    z_scores = shift_between(looks, {name: rows_LND for name, (rows_LND, _) in seen.items()})
    labels = {name: found for name, (_, found) in seen.items()}
    return {
        (a, b): Likeness(
            (z_scores[a, b], z_scores[b, a]), len(labels[a] & labels[b]) / max(len(labels[a] | labels[b]), 1)
        )
        for a, b in pairs
    }


def shift_between(looks: Mapping[str, Descriptor], seen: Mapping[str, Tensor]) -> dict[Pair, float]:
    """(by, of) -> mean z-score of the rows (L, N, D) of one under the descriptor of another."""
    z_KN, _ = shift_and_density(side_by_side(list(looks.values())), torch.cat(list(seen.values()), 1))
    found: dict[Pair, float] = {}
    for of, end in zip(seen, accumulate(rows_LND.shape[1] for rows_LND in seen.values()), strict=True):
        mean_K = z_KN[:, end - seen[of].shape[1] : end].mean(1)
        found |= {(by, of): float(z) for by, z in zip(looks, mean_K, strict=True)}
    return found


def _seen_by(adapter: Adapter) -> tuple[Tensor, set[str]]:
    """Signatures (L, N, D) of held-out rows of the newest shards that it serves, and the labels of all of them."""
    parts = [load_reference(shard_id) for shard_id in reversed(adapter.serves)]
    labels = {label for part in parts for label in tensor_to_labels(part["labels"])}
    return torch.cat([part["LND"] for part in parts], 1)[:, :SCORED_ROWS], labels - {""}


def agreements(stream: Stream, adapters: Sequence[Adapter], pairs: Sequence[Pair]) -> dict[Pair, float]:
    """Share of a pair's held-out rows that get one label from the model with the first adapter alone and with the
    second alone."""
    with database.transaction() as session:
        shards = {a.adapter_id: [s for s in contents.shards(session, a.serves) if s.held_out] for a in adapters}
    rows = {name: [row for s in reversed(own) for row in held_out(load_rows(s))] for name, own in shards.items()}
    states = {name: states_of(stream, own[:ANSWERED_ROWS]) for name, own in rows.items()}
    model = load_model({**current_manifest(stream, adapters=adapters), "waiting": []})
    assert isinstance(model, ServingModel)
    groups = frozenset(label for adapter in adapters for label in labels_of(adapter.group)) & set(model.frozen)
    composed, backbone = compose(model, groups), open_backbone(stream)

    def answers(by: str, of: str) -> list[str]:
        return predict(backbone, composed.only([by]), states[of], REMEMBERED).labels if states[of] else []

    found = {}
    for a, b in pairs:
        both = [(x, y) for of in (a, b) for x, y in zip(answers(a, of), answers(b, of), strict=True)]
        found[a, b] = sum(x == y for x, y in both) / max(len(both), 1)
    return found
