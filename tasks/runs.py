"""This run in Prefect: which one it is, what it is called."""

import os
from collections.abc import Callable
from threading import Thread
from typing import Any, TypeVar

from prefect import Flow, Task, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.runtime import flow_run as this_run

from registry.errors import StateError
from registry.records import Batch

T = TypeVar("T")
ATTEMPTS = 5


def deployed_run() -> str | None:
    """Id of the run that a worker started in this process; None where a person called the flow."""
    return os.environ.get("PREFECT__FLOW_RUN_ID")


def refuse_after_losses() -> None:
    """Raises StateError in a run that keeps losing its worker: a crashed run is resumed, and would be for ever."""
    if deployed_run() is not None and this_run.run_count > ATTEMPTS:
        raise StateError(
            f"this run lost its worker {ATTEMPTS} times; look at the worker's memory before it is run again"
        )


def name_run(name: str) -> None:
    """Rename the flow run: what it decided says more than what it was asked."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None and context.flow_run.name != name:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, name=name)


def find_again(subflow: Flow[..., Any], batch: Batch) -> None:
    """Before a run's first call of the subflow: have Prefect continue the batch's own run, if this one was resumed.

    Prefect knows the subflows of a run by their order of call, and a resumed run begins with the batch that is
    unfinished: it would be shown under the run of the first."""
    context, key = FlowRunContext.get(), Task(subflow.fn).task_key
    if context is None or context.flow_run is None or deployed_run() is None or key in context.task_run_dynamic_keys:
        return
    called = list(dict.fromkeys(run.parameters["batch"]["batch_id"] for run in _subflows(context.flow_run, subflow)))
    place = called.index(batch.batch_id) if batch.batch_id in called else len(called)
    if place > 0:
        context.task_run_dynamic_keys[key] = place - 1  # of the call before


def _subflows(run: FlowRun, subflow: Flow[..., Any]) -> list[FlowRun]:
    """The run's own runs of the subflow, in their order of call."""
    of_flow = FlowFilter(name=FlowFilterName(any_=[subflow.name]))
    of_run = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
    order = FlowRunSort.EXPECTED_START_TIME_ASC
    with get_client(sync_client=True) as client:
        return every_page(
            lambda offset: client.read_flow_runs(flow_filter=of_flow, flow_run_filter=of_run, sort=order, offset=offset)
        )


def every_page(read: Callable[[int], list[T]]) -> list[T]:
    """All that `read` answers from an offset on: a server gives 200 things at most at once."""
    found: list[T] = []
    while page := read(len(found)):
        found += page
    return found


def send_heartbeats(seconds: float = 30) -> None:
    """Wait, so long at most, until what this process has said is with the server; to be called before a suspension.

    The first heartbeat travels for a second or more. One that arrives after its run was suspended is the beginning of a
    silence, and silence is a crash (`tasks.triggers`).
    """
    sending = Thread(target=EventsWorker.instance().wait_until_empty, daemon=True)
    sending.start()
    sending.join(seconds)
