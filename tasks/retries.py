"""Which errors are worth another attempt, and the one way a step becomes a Prefect task."""

from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from registry.errors import TransientError


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), TransientError)


# A cached result could outlive a deletion, so no step is ever cached by Prefect.
step = partial(
    task,
    retries=3,
    retry_delay_seconds=[1, 5, 25],
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
