"""Hand training to a worker of another pool, wait for it without a process, and be woken when it ends."""

from collections.abc import Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID, uuid4

from prefect import Flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flow_runs import suspend_flow_run
from prefect.states import Cancelled
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from infra import database
from registry import adapters as adapter_rows
from registry import contents
from registry.errors import StateError, UnknownIdError
from registry.records import Decision, DecisionKind, Shard
from registry.sections import WithoutWorker
from registry.stream import Stream
from tasks.local_copies import follow_deletions
from tasks.narration import say
from tasks.policies.placement import Place, place_training
from tasks.retries import step
from tasks.runs import deployed_run, refuse_after_losses, send_heartbeats

TO_TRAIN = (DecisionKind.EXPAND, DecisionKind.REFRESH)
UNFINISHED = [
    StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING
]  # fmt: skip
WAKE_SECONDS = 60


@step("load-shard-{shard_id}")
def load_shard(stream: Stream, shard_id: int) -> Shard:
    """The shard. Raises SchemaError where the catalog does not fit the code of this worker."""
    refuse_after_losses()
    database.check_revision()
    follow_deletions(stream.name)
    with database.transaction() as session:
        found = contents.shards(session, [shard_id])
    if not found:
        raise UnknownIdError("shard", str(shard_id))
    return found[0]


@step("place-{decision.adapter_id}")
def hand_over(stream: Stream, shard: Shard, decision: Decision) -> UUID | None:
    """Start training on the stream's pool where the policy says so; returns the run to wait for, or None: train here.

    Asked again by a resumed run it finds the same run. Raises StateError when that run did not succeed.
    """
    adapter_id, pool, mine = decision.adapter_id or "", stream.tasks.pool, deployed_run()
    with get_client(sync_client=True) as client:
        under_way = find_training(client, adapter_id) if mine else None
        if under_way is not None and _is_left(client, under_way):
            client.set_flow_run_state(under_way.id, Cancelled(message="nobody waits for it any more"), force=True)
            under_way = None
        workers = live_workers(client, pool) if mine and pool else 0
    if under_way is not None:
        return under_way.id
    wait = stream.tasks.without_worker == WithoutWorker.WAIT
    placed = place_training(mine is not None, pool, workers, wait)
    say(f"  {adapter_id} is trained {placed.place.value}: {placed.reason}")
    return None if placed.place == Place.HERE else _start(stream, shard, decision, mine or "").id


def _is_left(client: SyncPrefectClient, training: FlowRun) -> bool:
    """Whether no worker has taken it yet and the run that wanted it is over: it may wait for a worker for ever."""
    if training.state_type != StateType.SCHEDULED:
        return False
    try:
        owner = client.read_flow_run(UUID(training.parameters["waiting"]))
    except ObjectNotFound:
        return True
    return owner.state is not None and owner.state.is_final()


def _start(stream: Stream, shard: Shard, decision: Decision, waiting: str) -> FlowRun:
    parameters = {
        "stream": stream.model_dump(mode="json"),
        "adapter_id": decision.adapter_id,
        "shard_id": shard.shard_id,
        "kind": decision.kind.value,
        "waiting": waiting,
    }
    key = f"{waiting}:{decision.adapter_id}:{shard.shard_id}"
    tags = [_tag(decision.adapter_id or "")]
    run = run_deployment(f"train/{stream.name}", parameters=parameters, timeout=0, tags=tags, idempotency_key=key)
    assert isinstance(run, FlowRun), "called without an event loop, it answers at once"
    if run.state is not None and run.state.is_final():
        raise StateError(f"training {decision.adapter_id} ended as {run.state_name}; see run {run.id}")
    return run


def is_trained(decision: Decision, shard: Shard) -> bool:
    """The adapter's row is written last, so it says that everything of it is there."""
    with database.transaction() as session:
        try:
            adapter = adapter_rows.get_adapter(session, decision.adapter_id or "")
        except UnknownIdError:
            return False
    return shard.shard_id in adapter.shard_ids


def wait_for_training(stream: Stream, runs: Sequence[UUID]) -> None:
    """Suspend this run until its training wakes it: no process and no slot is held. It begins again from the top.

    Returns at once where all of the training belongs to another run that waits for it already.
    """
    with get_client(sync_client=True) as client:
        owners = {client.read_flow_run(run).parameters.get("waiting") for run in runs}
    if deployed_run() not in owners:
        say(f"{stream.name}: the training that is needed is under way for another run; nothing to do here")
        return
    deadline = timedelta(minutes=stream.tasks.wait_minutes)
    send_heartbeats()
    # a run does not suspend again under a key that it was resumed from: it may have been resumed too early, or this is
    # another batch's training; Prefect does not count a resumed run as another one
    suspend_flow_run(timeout=int(deadline.total_seconds()), key=f"training-{uuid4().hex}")


def wake_waiting(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001
    """At the end of a training: resume the run that waits for it. It may still be on its way into suspension."""
    waiting = flow_run.parameters.get("waiting")
    if waiting is None:
        return
    with get_client(sync_client=True) as client:
        suspending = Retrying(
            stop=stop_after_delay(WAKE_SECONDS),
            wait=wait_fixed(0.5),
            retry=retry_if_result(lambda found: found is not None and found.is_running()),
            retry_error_callback=lambda _: None,
        )
        now = suspending(lambda: client.read_flow_run(UUID(waiting)).state)
        if now is not None and now.is_paused():
            client.resume_flow_run(UUID(waiting))


def live_workers(client: SyncPrefectClient, pool: str) -> int:
    try:
        workers = client.read_workers_for_work_pool(pool)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.NOT_FOUND:
            raise
        return 0  # somebody removed the pool
    return sum(worker.status == WorkerStatus.ONLINE for worker in workers)


def find_training(client: SyncPrefectClient, adapter_id: str) -> FlowRun | None:
    """An unfinished training of the adapter, whoever asked for it."""
    wanted = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[_tag(adapter_id)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
    )
    return next(iter(client.read_flow_runs(flow_run_filter=wanted, limit=1)), None)


def _tag(adapter_id: str) -> str:
    return f"adapter:{adapter_id}"
