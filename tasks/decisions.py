"""Decide what a shard asks for, measure the roads not taken, and write the decision down."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from infra import database
from registry import adapters as adapter_rows
from registry import decision_log
from registry.records import Batch, Decision, DecisionKind, MixtureScan, Shard, ShiftEvidence
from registry.stream import Stream
from registry.tables import DecisionRow
from tasks.adapters import join_adapter, measure_own, measure_reuse
from tasks.exclusion import still_alone
from tasks.mixing import recorded_growth
from tasks.narration import say
from tasks.policies.expansion import ShiftRule, choose_expansion, choose_growth, refine_reuse, tell_growth
from tasks.retries import step

MARKS = {DecisionKind.EXPAND: "+", DecisionKind.REUSE: "=", DecisionKind.REFRESH: "~", DecisionKind.HOLD: "?"}


@step("decide-{batch.name}-{shard.group}")
def decide(stream: Stream, batch: Batch, shard: Shard, evidence: list[ShiftEvidence] | MixtureScan) -> Decision:
    """Reuse, refresh, expand or hold, with the reason; decided once per shard, also when a run is repeated."""
    with database.transaction() as session:
        known = decision_log.find_decision(session, shard.shard_id)
        if known is not None:
            return to_decision(known)
    rule = ShiftRule(stream.shift.alpha, stream.shift.min_rows, stream.gates.refresh_drop)
    decision = (
        choose_growth(evidence, shard.labelled, stream.mix.threshold, stream.shift.min_rows, shard.held_out)
        if isinstance(evidence, MixtureScan)
        else choose_expansion(evidence, shard.labelled, rule, shard.held_out)
    )
    if decision.kind == DecisionKind.REUSE and decision.adapter_id is not None:
        join_adapter.fn(stream, shard, decision.adapter_id)
        decision = _refined(stream, shard, decision, rule)
    with database.transaction() as session:
        still_alone(session, stream.name)
        if decision.kind == DecisionKind.EXPAND and decision.adapter_id is None:
            decision = replace(decision, adapter_id=adapter_rows.new_adapter_id(session, stream.name))
        decision_log.add_decision(session, batch, shard, decision, _numbers(decision, evidence))
    say(f"  {MARKS[decision.kind]} {decision.kind.value}: {decision.reason}")
    return decision


def _refined(stream: Stream, shard: Shard, reuse: Decision, rule: ShiftRule) -> Decision:
    """A refresh only where the shard falls short of what the adapter reached when it was judged, and reaches now."""
    adapter_id = reuse.adapter_id or ""
    measured, expected = measure_reuse(stream, shard, adapter_id)
    refined = refine_reuse(reuse, measured, shard.held_out, expected, rule)
    if refined.kind != DecisionKind.REFRESH:
        return refined
    return refine_reuse(reuse, measured, shard.held_out, measure_own(stream, shard, adapter_id), rule)


def with_growth(stream: Stream, shards: Sequence[Shard], decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions, those that grew a mixture completed by what training found and did, layer by layer."""
    pairs = zip(shards, decisions, strict=True)
    return [_completed(stream, shard, each) if each.kind == DecisionKind.EXPAND else each for shard, each in pairs]


def _completed(stream: Stream, shard: Shard, decision: Decision) -> Decision:
    with database.transaction() as session:
        grown = recorded_growth(adapter_rows.get_adapter(session, decision.adapter_id or "")).get(shard.shard_id)
        if grown is None:
            return decision
        told = tell_growth(grown.least, grown.blocks, stream.mix.threshold)
        reason = decision.reason.partition("; trained: ")[0] + f"; trained: {told}"
        completed = replace(decision, reason=reason, z_scores=grown.z_scores)
        numbers = {"z_scores": grown.z_scores, "grown": list(grown.blocks), "least": grown.least}
        decision_log.complete_decision(session, shard.shard_id, reason, numbers)
    say(f"  {decision.adapter_id}: {told}")
    return completed


def _numbers(decision: Decision, evidence: list[ShiftEvidence] | MixtureScan) -> dict[str, Any]:
    if isinstance(evidence, MixtureScan):
        told = {"least": evidence.least, "evidence": []}
        return {"p_value": None, "z_scores": decision.z_scores, "alternatives": decision.alternatives, **told}
    return {
        "p_value": decision.p_value,
        "z_scores": decision.z_scores,
        "alternatives": decision.alternatives,
        "evidence": [asdict(each) for each in evidence],
    }


def to_decision(row: DecisionRow) -> Decision:
    return Decision(
        kind=DecisionKind(row.kind),
        adapter_id=row.adapter_id,
        reason=row.reason,
        p_value=row.numbers["p_value"],
        z_scores=row.numbers["z_scores"],
        alternatives=row.numbers["alternatives"],
    )
