"""Keep to the budget, and merge close adapters behind an accuracy gate."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from sqlalchemy.orm import Session

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, decision_log, lineage
from registry.errors import StateError
from registry.records import (
    LABEL_SEPARATOR,
    Adapter,
    AdapterState,
    Decision,
    DecisionKind,
    Gate,
    Shard,
    Verdict,
    labels_of,
)
from registry.sections import Composition
from registry.stream import WHOLE, Stream
from tasks.adapters import erase_adapter, fit_closed_forms
from tasks.approvals import with_word
from tasks.assembly import current_manifest, load_model
from tasks.evaluation import Score, score_shards, total
from tasks.events import GATE_REFUSED, announce
from tasks.forms import load_weights
from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging import merge, recipe_of
from tasks.narration import say
from tasks.policies.approval import asks_person
from tasks.policies.merging import Excess, excess_of_merge, find_excess, may_merge
from tasks.policies.promotion import adapter_earns_its_place, merge_is_kept
from tasks.release import begin_work
from tasks.retries import step


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


@step("budget-{stream.name}")
def measure_budget(stream: Stream, passed_over: Collection[str] = ()) -> Excess | None:
    """A group that has more serving adapters than `consolidation.max_adapters`, or None."""
    if not stream.consolidates:
        return None
    with database.transaction() as session:
        serving = adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])
    excess = find_excess(serving, stream.consolidation.max_adapters, passed_over)
    if excess is not None:
        say(f"  over budget: {excess.reason} (group {excess.group})")
    return excess


@step("merge-{parent_ids}")
def merge_adapters(stream: Stream, parent_ids: tuple[str, ...], dry_run: bool = False) -> MergeOutcome:
    """Merge the parents, measure on every parent's held-out rows, keep the merge or throw it away.

    The recipe (parents in order, shares, operator) is recorded, so that a deletion replays it from clean parents.
    """
    with database.transaction() as session:
        parents = [adapter_rows.get_adapter(session, parent_id) for parent_id in parent_ids]
        refuse_foreign(stream, parents)
        refuse_large(parents, {name: lineage.merge_depth(session, name) for name in parent_ids})
        refuse_across(stream, parents)
        refuse_gone(parents)
        serving = adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])
        merged_id = adapter_rows.new_adapter_id(session, stream.name)
    merged = _merged(merged_id, parents, stream.consolidation.operator)
    epoch = begin_work(stream.name, {*merged.shard_ids, *merged.serves})
    merged = fit_closed_forms(stream, merged, merged_weights(parents, merged.recipe), epoch)
    others = [a for a in serving if a.adapter_id not in parent_ids]
    before, after = (_scores(stream, chosen, parents) for chosen in (serving, [*others, merged]))
    together = total(after.values())
    earned = adapter_earns_its_place(together.accuracy, together.exact_accuracy, together.rows)
    verdict = merge_is_kept(_figures(before), _figures(after, alone=not earned.passed), stream.gates.merge_drop)
    was, now = (total(scores.values()).accuracy for scores in (before, after))
    if verdict.passed and not dry_run and asks_person(stream.gates.approval.merge, now < was):
        verdict = with_word(stream, Gate.MERGE, "+".join(parent_ids), verdict)
    accepted = verdict.passed and not dry_run
    with database.transaction() as session:  # a decision that is written down is carried out
        if not dry_run:
            figures = {"before": was, "after": now, "exact_head": together.exact_accuracy}
            _note(session, merged, verdict, figures)
        if accepted:
            state = AdapterState.SERVING if earned.passed else AdapterState.CANDIDATE
            reason = f"merge kept: {verdict.reason}; {earned.reason}"
            _keep(session, replace(merged, accuracy=together.accuracy, state=state, reason=reason), parents)
    if not accepted:
        erase_adapter(merged, "a dry run" if verdict.passed else f"merge refused: {verdict.reason}")
    if not verdict.passed and not dry_run:
        what = "+".join(parent_ids)
        announce(GATE_REFUSED, stream.name, "gate", f"merge:{what}", gate="merge", what=what, reason=verdict.reason)
    say(f"  merge of {' and '.join(parent_ids)} {'kept' if verdict.passed else 'refused'}: {verdict.reason}")
    return MergeOutcome(accepted, merged_id if accepted else None, tuple(parent_ids), was, now, verdict.reason, epoch)


def refuse_foreign(stream: Stream, parents: Sequence[Adapter]) -> None:
    """Raise StateError where one of them is another stream's, or is named twice."""
    names = [parent.adapter_id for parent in parents]
    for parent in parents:
        if parent.stream != stream.name:
            raise StateError(
                f"{parent.adapter_id} belongs to the stream {parent.stream!r}; adapters merge within their own, and "
                f"`deciduous ls adapters --stream {stream.name}` lists those of {stream.name!r}"
            )
        if names.count(parent.adapter_id) > 1:
            raise StateError(f"{parent.adapter_id} is named twice; a merge takes two different adapters")


def refuse_across(stream: Stream, parents: Sequence[Adapter]) -> None:
    """Raise StateError where the parents' groups are not named together in the stream file, or where the stream's
    adapters are of a kind that is not merged."""
    if stream.composition == Composition.MIX:
        raise StateError(f"adapters of the mix stream {stream.name!r} are not merged: {WHOLE}")
    if not stream.consolidates:
        raise StateError(f"adapters of the causal-lm stream {stream.name!r} are not merged; retire one instead")
    for a, b in combinations(parents, 2):
        if not may_merge(a, b, stream.merge_across):
            groups = ", ".join(sorted(_labels([a, b])))
            raise StateError(
                f"{a.adapter_id} and {b.adapter_id} belong to the groups {groups}; name them together in merge_across "
                f"of stream {stream.name!r} if callers who hold all of them may share an adapter"
            )


def refuse_gone(parents: Sequence[Adapter]) -> None:
    """Raise StateError where one of them is merged, retired or erased: it serves no more."""
    for parent in parents:
        if parent.state not in (AdapterState.SERVING, AdapterState.CANDIDATE):
            raise StateError(f"{parent.adapter_id} is {parent.state} and cannot be merged: {parent.reason}")


def refuse_large(parents: Sequence[Adapter], depth: Mapping[str, int]) -> None:
    """Raise StateError where the merge would make every deletion beneath it expensive."""
    if (excess := excess_of_merge(parents, depth)) is not None:
        names = " and ".join(parent.adapter_id for parent in parents)
        raise StateError(f"{names} cannot be merged: {excess}; merge others, or retire one of them")


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
        recipe=recipe_of(operator, _shares(parents)),
    )


def _shares(parents: Sequence[Adapter]) -> list[float]:
    return [1 / len(parents)] * len(parents)


def merged_weights(parents: Sequence[Adapter], recipe: Mapping[str, Any]) -> AdapterWeights:
    """Run a merge's recorded recipe on the parents' weights as they serve."""
    return merge(recipe, [load_weights(parent) for parent in parents])


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


def _keep(session: Session, merged: Adapter, parents: Sequence[Adapter]) -> None:
    adapter_rows.put_adapter(session, merged)
    for parent in parents:
        adapter_rows.move_adapter(session, parent.adapter_id, AdapterState.MERGED, f"merged into {merged.adapter_id}")


def _note(session: Session, merged: Adapter, verdict: Verdict, figures: Mapping[str, float | None]) -> None:
    """Write the decision down; a refused pair is not tried again while it serves as many shards."""
    kind = DecisionKind.MERGE if verdict.passed else DecisionKind.KEEP
    decision = Decision(kind, merged.adapter_id, verdict.reason, alternatives=dict(figures))
    numbers: dict[str, object] = {"parents": list(merged.parent_ids), "cohort": len(merged.serves), **merged.recipe}
    decision_log.add_consolidation(session, merged.stream, decision, numbers)
