"""Take in every new batch: measure its shift, reuse or add an adapter, register the result, move the champion."""

from prefect import flow

from registry.errors import SourceError
from registry.records import Batch, Decision, DecisionKind, Shard
from registry.stream import Stream
from tasks.adapters import judge_adapter, refresh_adapter, train_adapter
from tasks.batches import discover, encode_batch, finish_batch, hold_batch, open_stream, read_batch, unfinished_batches
from tasks.decisions import decide
from tasks.promotion import promote_version
from tasks.registration import register_batch
from tasks.reports import report_batch
from tasks.shift import measure_shift


@flow(name="learn", flow_run_name="learn-{stream.name}")
def learn(stream: Stream, limit: int | None = None) -> list[str]:
    """Bring the stream's model up to date with its source; returns the ids of the batches that were finished.

    An interrupted run is continued. An object that cannot be taken in fails alone: the others are taken in, then a
    SourceError names the refused ones.
    """
    open_stream(stream)
    finished = [learn_batch(stream, batch) for batch in unfinished_batches(stream)]
    refused: list[str] = []
    for uri, tag in discover(stream)[:limit]:
        try:
            batch = read_batch(stream, uri, tag)
        except SourceError as error:
            refused.append(str(error))
        else:
            if batch is not None:
                finished.append(learn_batch(stream, batch))
    if refused:
        raise SourceError(f"{len(refused)} object(s) of {stream.name!r} were refused:\n" + "\n".join(refused))
    return finished


@flow(name="learn-batch", flow_run_name="{stream.name}-{batch.name}")
def learn_batch(stream: Stream, batch: Batch) -> str:
    """One batch, from its rows to a model version; every step is idempotent, so a killed run can be repeated."""
    encode_batch(stream, batch)
    decisions = [adapt(stream, batch, shard) for shard in batch.shards]
    if all(decision.kind == DecisionKind.HOLD for decision in decisions):
        hold_batch(stream, batch, decisions[0].reason)
        report_batch(stream, batch, decisions, None)
        return batch.batch_id
    version = register_batch(stream, batch, decisions)
    promotion = promote_version(stream, version)
    finish_batch(batch)
    report_batch(stream, batch, decisions, promotion)
    return batch.batch_id


def adapt(stream: Stream, batch: Batch, shard: Shard) -> Decision:
    """Decide for the records of one group, and carry the decision out."""
    evidence = measure_shift(stream, shard)
    decision = decide(stream, batch, shard, evidence)
    if decision.adapter_id is None or decision.kind == DecisionKind.HOLD:
        return decision
    if decision.kind == DecisionKind.EXPAND:
        train_adapter(stream, shard, decision.adapter_id)
    elif decision.kind == DecisionKind.REFRESH:
        refresh_adapter(stream, shard, decision.adapter_id)
    judge_adapter(stream, shard, decision.adapter_id)
    return decision
