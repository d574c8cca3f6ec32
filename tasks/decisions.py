"""Decide what a shard asks for, measure the roads not taken, and write the decision down."""

from dataclasses import asdict, replace
from typing import Any

from infra import database
from registry import adapters as adapter_rows
from registry import catalog
from registry.records import Batch, Decision, DecisionKind, Shard, ShiftEvidence
from registry.stream import Stream
from registry.tables import DecisionRow
from tasks.adapters import join_adapter, measure_reuse
from tasks.narration import say
from tasks.policies.expansion import ShiftRule, choose_expansion, refine_reuse
from tasks.retries import step

MARKS = {DecisionKind.EXPAND: "+", DecisionKind.REUSE: "=", DecisionKind.REFRESH: "~", DecisionKind.HOLD: "?"}


@step("decide-{batch.name}-{shard.group}")
def decide(stream: Stream, batch: Batch, shard: Shard, evidence: list[ShiftEvidence]) -> Decision:
    """Reuse, refresh, expand or hold, with the reason; decided once per shard, also when a run is repeated."""
    with database.transaction() as session:
        known = catalog.find_decision(session, shard.shard_id)
        if known is not None:
            return to_decision(known)
    rule = ShiftRule(stream.shift.alpha, stream.shift.min_rows, stream.gates.refresh_drop)
    usable = shard.labelled if shard.held_out >= 2 else 0
    decision = choose_expansion(evidence, usable, rule)
    if decision.kind == DecisionKind.REUSE and decision.adapter_id is not None:
        join_adapter.fn(stream, shard, decision.adapter_id)
        measured, expected = measure_reuse(stream, shard, decision.adapter_id)
        decision = refine_reuse(decision, measured, shard.held_out, expected, rule)
    with database.transaction() as session:
        if decision.kind == DecisionKind.EXPAND:
            decision = replace(decision, adapter_id=adapter_rows.new_adapter_id(session, stream.name))
        catalog.add_decision(session, batch, shard, decision, _numbers(decision, evidence))
    say(f"  {MARKS[decision.kind]} {decision.kind.value}: {decision.reason}")
    return decision


def _numbers(decision: Decision, evidence: list[ShiftEvidence]) -> dict[str, Any]:
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
