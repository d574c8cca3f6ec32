"""Which errors are worth another attempt, and the one way a step becomes a Prefect task."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from infra.errors import UnreachableError
from registry.errors import TransientError
from tasks.stopwatch import timing

P = ParamSpec("P")
R = TypeVar("R")


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), TransientError | UnreachableError)


def step(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A Prefect task with our retries. Never cached by Prefect: a cached result could outlive a deletion."""
    as_task: Callable[[Callable[P, R]], Task[P, R]] = task(
        task_run_name=name,
        retries=3,
        retry_delay_seconds=[1, 5, 25],
        retry_condition_fn=worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return lambda function: as_task(timing("steps")(function))
