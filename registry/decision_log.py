"""What was decided about a batch or about adapters, and why. Takes the caller's session, never commits."""

from collections.abc import Mapping

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from registry.records import Batch, Decision, DecisionKind, Shard
from registry.tables import BatchRow, DecisionRow


def add_decision(session: Session, batch: Batch, shard: Shard, decision: Decision, numbers: dict[str, object]) -> None:
    session.add(
        DecisionRow(
            stream=batch.stream,
            batch_id=batch.batch_id,
            shard_id=shard.shard_id,
            kind=decision.kind,
            adapter_id=decision.adapter_id,
            reason=decision.reason,
            numbers=numbers,
        )
    )


def complete_decision(session: Session, shard_id: int, reason: str, numbers: Mapping[str, object]) -> None:
    """Add to a decision what was found while it was carried out."""
    row = session.scalars(select(DecisionRow).where(DecisionRow.shard_id == shard_id)).one()
    row.reason, row.numbers = reason, {**row.numbers, **numbers}
    session.flush()


def add_consolidation(session: Session, stream: str, decision: Decision, numbers: dict[str, object]) -> None:
    """A decision about adapters that no single batch asked for."""
    row = DecisionRow(stream=stream, kind=decision.kind, adapter_id=decision.adapter_id, reason=decision.reason)
    row.numbers = {**numbers, "p_value": None, "z_scores": {}, "alternatives": decision.alternatives}
    session.add(row)
    session.flush()


def decisions(session: Session, stream: str) -> list[DecisionRow]:
    return list(
        session.scalars(select(DecisionRow).where(DecisionRow.stream == stream).order_by(DecisionRow.decision_id))
    )


def expansions(session: Session, stream: str) -> list[int]:
    """Ordinals of the batches that asked for a new adapter, ascending; twice where two of its groups did. A mixture is
    born once, however often it grows."""
    first = func.min(BatchRow.ordinal)
    query = select(first).join(DecisionRow, DecisionRow.batch_id == BatchRow.batch_id)
    query = query.where(DecisionRow.stream == stream, DecisionRow.kind == DecisionKind.EXPAND)
    return list(session.scalars(query.group_by(DecisionRow.adapter_id).order_by(first)))


def drop_decision(session: Session, shard_id: int) -> None:
    """Have a shard decided again."""
    session.execute(delete(DecisionRow).where(DecisionRow.shard_id == shard_id))


def find_decision(session: Session, shard_id: int) -> DecisionRow | None:
    return session.scalar(select(DecisionRow).where(DecisionRow.shard_id == shard_id))
