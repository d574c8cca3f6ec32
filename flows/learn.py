"""Take in every new batch: measure its shift, reuse or add an adapter, register the result, move the champion."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from prefect import flow
from prefect.futures import PrefectFuture

from flows.consolidate import finish_interrupted, keep_to_budget
from registry.errors import SourceError, StaleEpochError, SuppressedRecordError
from registry.records import Adapter, Batch, Decision, DecisionKind, Shard
from registry.stream import Stream
from tasks.adapters import judge_adapter, refresh_adapter, train_adapter
from tasks.batches import discover, encode_batch, finish_batch, hold_batch, open_stream, read_batch, unfinished_batches
from tasks.decisions import decide, with_growth
from tasks.exclusion import alone
from tasks.handover import TO_TRAIN, hand_over, is_trained, wait_for_training
from tasks.missed import catch_up_when_deployed
from tasks.narration import say
from tasks.promotion import promote_version
from tasks.registration import register_batch
from tasks.reports import report_batch
from tasks.runners import runner_of
from tasks.runs import find_again, name_run
from tasks.shift import measure_shift


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a batch came: finished or held, or waiting for training that runs elsewhere."""

    batch_id: str
    training: tuple[UUID, ...] = ()


@flow(name="learn", flow_run_name="{stream.name}: learn")
def learn(stream: Stream, limit: int | None = None) -> list[str]:
    """Bring the stream's model up to date with its source; returns the ids of the batches that were finished.

    An interrupted run is continued. An object that cannot be taken in fails alone: the others are taken in, then a
    SourceError names the refused ones. A run whose training is handed to a worker suspends, and begins again after it.
    """
    open_stream(stream)
    catch_up_when_deployed(stream.name)
    with alone(stream.name):
        consolidate_after(stream, finish_interrupted)
    finished: list[str] = []
    refused: list[str] = []
    for batch in unfinished_batches(stream):
        if not take_in(stream, batch, finished):
            return finished
    for batch in islice(new_batches(stream, refused), limit):
        if not take_in(stream, batch, finished):
            return finished
    if refused:
        raise SourceError(f"{len(refused)} object(s) of {stream.name!r} were refused:\n" + "\n".join(refused))
    return finished


def new_batches(stream: Stream, refused: list[str]) -> Iterator[Batch]:
    """Each new object as a batch. One that was taken in before or is refused is none: a limit never stops at it."""
    for uri, tag in discover(stream):
        try:
            batch = read_batch(stream, uri, tag)
        except SourceError as error:
            refused.append(str(error))
        else:
            if batch is not None:
                yield batch


def take_in(stream: Stream, batch: Batch, finished: list[str]) -> bool:
    """Learn a batch. False where a training that another run waits for has to end first: batches keep their order."""
    find_again(learn_batch, batch)
    with alone(stream.name):
        outcome = learn_batch.with_options(task_runner=runner_of(stream))(stream, batch)
    if outcome.training:
        wait_for_training(stream, outcome.training)  # suspends, and does not come back
        return False
    finished.append(outcome.batch_id)
    return True


@flow(name="learn-batch", flow_run_name="{stream.name}: {batch.name}", persist_result=False)
def learn_batch(stream: Stream, batch: Batch) -> Outcome:
    """One batch, from its rows to a model version; every step is idempotent, so a killed run can be repeated.

    No outcome is kept: a resumed run would be given the one from before the training that it waited for.
    """
    encode_batch(stream, batch)
    decisions = [decide(stream, batch, shard, measure_shift(stream, shard)) for shard in batch.shards]
    name_run(f"{stream.name}: {batch.name}: {' + '.join(dict.fromkeys(d.kind.value for d in decisions))}")
    if training := train_adapters(stream, batch, decisions):
        return Outcome(batch.batch_id, training)
    decisions = with_growth(stream, batch.shards, decisions)
    for shard, decision in zip(batch.shards, decisions, strict=True):
        if decision.adapter_id is not None and decision.kind != DecisionKind.HOLD:
            judge_adapter(stream, shard, decision.adapter_id)
    if all(decision.kind == DecisionKind.HOLD for decision in decisions):
        hold_batch(stream, batch, decisions[0].reason)
        report_batch(stream, batch, decisions, None)
        return Outcome(batch.batch_id)
    version = register_batch(stream, batch, decisions)
    promotion = promote_version(stream, version)
    finish_batch(stream, batch, decisions)
    report_batch(stream, batch, decisions, promotion)
    consolidate_after(stream)
    return Outcome(batch.batch_id)


def consolidate_after(stream: Stream, work: Callable[[Stream], object] = keep_to_budget) -> None:
    """Keep to the budget of adapters; what a ticket is about to rebuild waits for the next batch."""
    try:
        work(stream)
    except (SuppressedRecordError, StaleEpochError) as error:
        say(f"  not consolidated now: {error}")


def train_adapters(stream: Stream, batch: Batch, decisions: list[Decision]) -> tuple[UUID, ...]:
    """Train what the decisions ask for, side by side: here, or by workers; returns the runs to wait for."""
    wanted = [
        (shard, decision)
        for shard, decision in zip(batch.shards, decisions, strict=True)
        if decision.kind in TO_TRAIN and not is_trained(decision, shard)
    ]
    handed = [hand_over(stream, shard, decision) for shard, decision in wanted]
    here = [pair for pair, run in zip(wanted, handed, strict=True) if run is None]
    for trained in [train_here(stream, shard, decision) for shard, decision in here]:
        trained.result()
    return tuple(run for run in handed if run is not None)


def train_here(stream: Stream, shard: Shard, decision: Decision) -> PrefectFuture[Adapter]:
    train = refresh_adapter if decision.kind == DecisionKind.REFRESH else train_adapter
    return train.submit(stream, shard, decision.adapter_id or "")
