"""Merge close adapters behind an accuracy gate, and retire what is no longer needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, lineage
from registry.errors import StateError
from registry.records import LABEL_SEPARATOR, Adapter, AdapterState, Gate, Shard, Verdict, labels_of
from registry.stream import Stream
from tasks import blobs
from tasks.adapters import erase_adapter, fit_closed_forms, judge_adapter
from tasks.approvals import with_word
from tasks.assembly import current_manifest, load_model
from tasks.evaluation import Score, score_shards, total
from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging import merge
from tasks.learning.shift import mmd_test
from tasks.narration import say
from tasks.policies.approval import asks_person
from tasks.policies.merging import may_merge, merge_candidates
from tasks.policies.promotion import adapter_earns_its_place, merge_is_kept
from tasks.release import begin_work
from tasks.retries import step
from tasks.shift import KNOWN, reference_of


@dataclass(frozen=True, slots=True)
class MergeOutcome:
    accepted: bool
    adapter_id: str | None
    parent_ids: tuple[str, ...]
    accuracy_before: float
    accuracy_after: float
    reason: str
    epoch: int
    """Deletion epoch at which the merge began; its version is refused where a ticket took effect since."""


@step("propose-merges-{stream.name}")
def propose_merges(stream: Stream) -> list[tuple[str, str]]:
    """Pairs of adapters, serving or waiting, that may be merged, closest first: MMD² between what they have seen."""
    with database.transaction() as session:
        known = adapter_rows.adapters(session, stream.name, KNOWN)
        depth = {a.adapter_id: lineage.merge_depth(session, a.adapter_id) for a in known}
    seen = {a.adapter_id: reference_of(stream, a).rows_ND for a in known}
    distance = {(a, b): mmd_test(seen[a], seen[b], permutations=1, seed=0).statistic for a, b in combinations(seen, 2)}
    pairs = merge_candidates(known, distance, depth, stream.merge_across)
    for a, b in pairs:
        say(f"  {a} and {b}: MMD² {distance[a, b]:.4f}")
    return pairs


@step("merge-{parent_ids}")
def merge_adapters(stream: Stream, parent_ids: tuple[str, ...], dry_run: bool = False) -> MergeOutcome:
    """Merge the parents, measure on every parent's held-out rows, keep the merge or throw it away.

    The recipe (parents in order, shares, operator) is recorded, so that a deletion replays it from clean parents.
    """
    with database.transaction() as session:
        parents = [adapter_rows.get_adapter(session, parent_id) for parent_id in parent_ids]
        serving = adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])
        merged_id = adapter_rows.new_adapter_id(session, stream.name)
    refuse_across(stream, parents)
    merged = _merged(merged_id, parents, stream.consolidation.operator)
    epoch = begin_work(stream.name, {*merged.shard_ids, *merged.serves})
    merged = fit_closed_forms(stream, merged, merged_weights(parents, merged.recipe), epoch)
    others = [a for a in serving if a.adapter_id not in parent_ids]
    before, after = (_scores(stream, chosen, parents) for chosen in (serving, [*others, merged]))
    together = total(list(after.values()))
    earned = adapter_earns_its_place(together.accuracy, together.exact_accuracy, together.rows)
    verdict = merge_is_kept(_figures(before), _figures(after, alone=not earned.passed), stream.gates.merge_drop)
    was, now = (total(list(scores.values())).accuracy for scores in (before, after))
    if verdict.passed and not dry_run and asks_person(stream.gates.approval.merge, now < was):
        verdict = with_word(stream, Gate.MERGE, "+".join(parent_ids), verdict)
    accepted = verdict.passed and not dry_run
    if accepted:
        state = AdapterState.SERVING if earned.passed else AdapterState.CANDIDATE
        _keep(merged, parents, state, f"merge kept: {verdict.reason}; {earned.reason}")
    else:
        erase_adapter(merged, "a dry run" if verdict.passed else f"merge refused: {verdict.reason}")
    say(f"  merge of {' and '.join(parent_ids)} {'kept' if verdict.passed else 'refused'}: {verdict.reason}")
    return MergeOutcome(accepted, merged_id if accepted else None, tuple(parent_ids), was, now, verdict.reason, epoch)


def refuse_across(stream: Stream, parents: Sequence[Adapter]) -> None:
    """Raise StateError where the parents' groups are not named together in the stream file."""
    for a, b in combinations(parents, 2):
        if not may_merge(a, b, stream.merge_across):
            groups = ", ".join(sorted(_labels([a, b])))
            raise StateError(
                f"{a.adapter_id} and {b.adapter_id} belong to the groups {groups}; name them together in merge_across "
                f"of stream {stream.name!r} if callers who hold all of them may share an adapter"
            )


def _labels(parents: Sequence[Adapter]) -> set[str]:
    return {label for parent in parents for label in labels_of(parent.group)}


def _merged(merged_id: str, parents: Sequence[Adapter], operator: str) -> Adapter:
    return Adapter(
        adapter_id=merged_id,
        stream=parents[0].stream,
        group=LABEL_SEPARATOR.join(sorted(_labels(parents))),
        state=AdapterState.CANDIDATE,
        shard_ids=tuple(dict.fromkeys(s for parent in parents for s in parent.shard_ids)),
        parent_ids=tuple(parent.adapter_id for parent in parents),
        serves=tuple(dict.fromkeys(s for parent in parents for s in parent.serves)),
        recipe={"kind": "merged", "operator": operator, "shares": _shares(parents)},
    )


def _shares(parents: Sequence[Adapter]) -> list[float]:
    return [1 / len(parents)] * len(parents)


def merged_weights(parents: Sequence[Adapter], recipe: Mapping[str, Any]) -> AdapterWeights:
    """Run a merge's recorded recipe on the parents' stored weights."""
    return merge(recipe, [blobs.load_tensors(parent.node, "weights") for parent in parents])


def _scores(stream: Stream, serving: Sequence[Adapter], parents: Sequence[Adapter]) -> dict[str, Score]:
    """Parent -> score on the held-out rows of the shards that it serves, under the model of these adapters."""
    with database.transaction() as session:
        served = {p.adapter_id: [s for s in catalog.shards(session, p.serves) if s.rows] for p in parents}
    model = load_model(current_manifest(stream, adapters=serving))
    every: list[Shard] = list({s.shard_id: s for shards in served.values() for s in shards}.values())
    scores = score_shards(stream, model, every, _labels(parents))
    return {parent: total([scores[s.shard_id] for s in shards]) for parent, shards in served.items()}


def _figures(scores: dict[str, Score], alone: bool = False) -> dict[str, tuple[float, int]]:
    """Parent -> (accuracy, rows); `alone` is the exact head, which answers where the merged adapter does not serve."""
    return {p: (score.exact_accuracy if alone else score.accuracy, score.rows) for p, score in scores.items()}


def _keep(merged: Adapter, parents: Sequence[Adapter], state: AdapterState, reason: str) -> None:
    with database.transaction() as session:
        adapter_rows.move_adapter(session, merged.adapter_id, state, reason)
        for parent in parents:
            adapter_rows.move_adapter(
                session, parent.adapter_id, AdapterState.MERGED, f"merged into {merged.adapter_id}"
            )


@step("retire-{adapter_id}")
def retire_adapter(adapter_id: str, reason: str) -> Adapter:
    """Stop serving an adapter; its blobs stay, because a deletion may have to replay what was merged from it."""
    with database.transaction() as session:
        retired = adapter_rows.move_adapter(session, adapter_id, AdapterState.RETIRED, reason)
    say(f"  {adapter_id} retired: {reason}")
    return retired


@step("reinstate-{adapter_id}")
def reinstate_adapter(stream: Stream, adapter_id: str, reason: str) -> Verdict:
    """Judge a retired adapter again: it serves where it beats the exact head today, else it waits as a candidate.

    Raises StateError where it is not retired, or where an adapter that it was merged into has taken its place.
    """
    with database.transaction() as session:
        known = adapter_rows.adapters(session, stream.name, KNOWN)
        adapter = adapter_rows.get_adapter(session, adapter_id)
        heirs = [each.adapter_id for each in known if adapter_id in each.parent_ids]
        if adapter.state != AdapterState.RETIRED or heirs:
            why = f"{heirs[0]} has taken its place; retire that first" if heirs else f"it is {adapter.state}"
            raise StateError(f"adapter {adapter_id!r} cannot be reinstated: {why}")
        adapter_rows.move_adapter(session, adapter_id, AdapterState.CANDIDATE, reason)
        shard = catalog.shards(session, adapter.serves)[0]
    return judge_adapter.fn(stream, shard, adapter_id)
