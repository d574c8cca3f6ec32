"""What trains several adapters at once: threads of this process, or workers of a Dask or Ray cluster."""

import os
from importlib import import_module
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from registry.errors import StateError
from registry.sections import Runner
from registry.stream import Stream

CLASSES = {Runner.DASK: ("prefect_dask", "DaskTaskRunner"), Runner.RAY: ("prefect_ray", "RayTaskRunner")}


def runner_of(stream: Stream) -> TaskRunner[Any]:
    """A cluster is the one that DASK_ADDRESS or RAY_ADDRESS names, else one of this machine's own."""
    runner = stream.tasks.runner
    if runner == Runner.THREAD:
        return ThreadPoolTaskRunner(max_workers=stream.tasks.workers)
    module, name = CLASSES[runner]
    try:
        kind = getattr(import_module(module), name)
    except ImportError:
        raise StateError(
            f"tasks.runner {runner.value} needs an extra: pip install 'deciduous[{runner.value}]'"
        ) from None
    return kind(address=os.environ.get(f"{runner.value.upper()}_ADDRESS"))  # type: ignore[no-any-return]
