"""Keep to the budget, and merge close adapters behind an accuracy gate."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from sqlalchemy.orm import Session

from infra import database
from registry import adapters as adapter_rows
from registry import contents, decision_log, lineage, ownership
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
from tasks.adapters import closed_forms
from tasks.approvals import with_word
from tasks.assembly import current_manifest, load_model
from tasks.blobs import Drafts
from tasks.evaluation import Score, score_shards, total
from tasks.events import GATE_REFUSED, announce
from tasks.forms import load_weights
from tasks.learning.adapters import AdapterWeights
from tasks.learning.composition import ServingModel
from tasks.learning.language.serving import LanguageModel
from tasks.learning.merging import merge, recipe_of
from tasks.narration import say
from tasks.policies.approval import asks_person
from tasks.policies.merging import Excess, excess_of_merge, find_excess, may_merge
from tasks.policies.promotion import adapter_earns_its_place, merge_is_kept
from tasks.release import begin_work, check_epoch
from tasks.retries import step


@dataclass(frozen=True, slots=True)
class MergeOutcome:
    accepted: bool
    """Whether it is kept, or, of a dry run, would be."""
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


@dataclass(frozen=True, slots=True)
class _Trial:
    """A merge that was measured: nothing of it is stored or named yet."""

    merged: Adapter
    parents: Sequence[Adapter]
    drafts: Drafts
    before: dict[str, Score]
    after: dict[str, Score]
    epoch: int


@step("merge-{parent_ids}")
def merge_adapters(stream: Stream, parent_ids: tuple[str, ...], dry_run: bool = False) -> MergeOutcome:
    """Merge the parents, measure on every parent's held-out rows, keep the merge or forget it.

    The recipe (parents in order, shares, operator) is recorded, so that a deletion replays it from clean parents.
    """
    tried, what = _try_merge(stream, parent_ids), "+".join(parent_ids)
    together = total(tried.after.values())
    earned = adapter_earns_its_place(together.accuracy, together.exact_accuracy, together.rows)
    before, after = _figures(tried.before), _figures(tried.after, alone=not earned.passed)
    verdict = merge_is_kept(before, after, stream.gates.merge_drop)
    was, now = (total(scores.values()).accuracy for scores in (tried.before, tried.after))
    if verdict.passed and asks_person(stream.gates.approval.merge, now < was):
        verdict = with_word(stream, Gate.MERGE, what, verdict, dry_run)
    say(f"  merge of {' and '.join(parent_ids)} {_told(verdict, dry_run)}: {verdict.reason}")
    outcome = MergeOutcome(verdict.passed, None, tuple(parent_ids), was, now, verdict.reason, tried.epoch)
    if dry_run:
        return outcome
    figures = {"before": was, "after": now, "exact_head": together.exact_accuracy}
    if verdict.passed:
        state = AdapterState.SERVING if earned.passed else AdapterState.CANDIDATE
        reason = f"merge kept: {verdict.reason}; {earned.reason}"
        merged = replace(tried.merged, accuracy=together.accuracy, state=state, reason=reason)
        return replace(outcome, adapter_id=_keep(stream, replace(tried, merged=merged), verdict, figures))
    with database.transaction() as session:
        _note(session, stream, tried.merged, None, verdict, figures)
    announce(GATE_REFUSED, stream.name, "gate", f"merge:{what}", gate="merge", what=what, reason=verdict.reason)
    return outcome


def _try_merge(stream: Stream, parent_ids: tuple[str, ...]) -> _Trial:
    with database.transaction() as session:
        parents = [adapter_rows.get_adapter(session, parent_id) for parent_id in parent_ids]
        refuse_foreign(stream, parents)
        refuse_large(parents, {name: lineage.merge_depth(session, name) for name in parent_ids})
        refuse_across(stream, parents)
        refuse_gone(parents)
        serving = adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])
    merged = _merged(parents, stream.consolidation.operator)
    epoch = begin_work(stream.name, {*merged.shard_ids, *merged.serves}, parents)
    merged, drafts = closed_forms(stream, merged, merged_weights(parents, merged.recipe))
    others = [a for a in serving if a.adapter_id not in parent_ids]
    before = _scores(stream, load_model(current_manifest(stream, adapters=serving)), parents)
    changed = current_manifest(stream, adapters=[*others, merged], unnamed=drafts.objects)
    after = _scores(stream, load_model(changed, drafts.read_tensors), parents)
    return _Trial(merged, parents, drafts, before, after, epoch)


def _told(verdict: Verdict, dry_run: bool) -> str:
    return f"{'would be ' if dry_run else ''}{'kept' if verdict.passed else 'refused'}"


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


def _merged(parents: Sequence[Adapter], operator: str) -> Adapter:
    """Named by its parents until it is kept: a refused merge takes no number."""
    return Adapter(
        adapter_id="+".join(parent.adapter_id for parent in parents),
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


def _scores(stream: Stream, model: ServingModel | LanguageModel, parents: Sequence[Adapter]) -> dict[str, Score]:
    """Parent -> score on the held-out rows of the shards that it serves."""
    with database.transaction() as session:
        served = {p.adapter_id: [s for s in contents.shards(session, p.serves) if s.rows] for p in parents}
    every: list[Shard] = list({s.shard_id: s for shards in served.values() for s in shards}.values())
    scores = score_shards(stream, model, every, _labels(parents))
    return {parent: total([scores[s.shard_id] for s in shards]) for parent, shards in served.items()}


def _figures(scores: dict[str, Score], alone: bool = False) -> dict[str, tuple[float, int]]:
    """Parent -> (accuracy, rows); `alone` is the exact head, which answers where the merged adapter does not serve."""
    return {p: (score.exact_accuracy if alone else score.accuracy, score.rows) for p, score in scores.items()}


def _keep(stream: Stream, tried: _Trial, verdict: Verdict, figures: Mapping[str, float | None]) -> str:
    """Store the merge, and name it with its decision in one transaction; returns its id. Raises StaleEpochError where a
    ticket took effect since it began."""
    tried.drafts.store()
    with database.transaction() as session:
        check_epoch(session, stream.name, tried.epoch, f"the merge of {tried.merged.adapter_id}")
        merged_id = adapter_rows.new_adapter_id(session, stream.name)
        merged = replace(tried.merged, adapter_id=merged_id)
        ownership.put_objects(session, [replace(stored, owner=merged.node) for stored in tried.drafts.objects])
        adapter_rows.put_adapter(session, merged)
        for parent in tried.parents:
            adapter_rows.move_adapter(session, parent.adapter_id, AdapterState.MERGED, f"merged into {merged_id}")
        _note(session, stream, merged, merged_id, verdict, figures)
    return merged_id


def _note(
    session: Session,
    stream: Stream,
    merged: Adapter,
    merged_id: str | None,
    verdict: Verdict,
    figures: Mapping[str, float | None],
) -> None:
    """Write the decision down; a refused pair rests while it serves as many shards under the same rules."""
    kind = DecisionKind.MERGE if verdict.passed else DecisionKind.KEEP
    decision = Decision(kind, merged_id, verdict.reason, alternatives=dict(figures))
    numbers: dict[str, object] = {"parents": list(merged.parent_ids), "cohort": len(merged.serves), **merged.recipe}
    numbers["merge_drop"] = stream.gates.merge_drop
    decision_log.add_consolidation(session, stream.name, decision, numbers)
