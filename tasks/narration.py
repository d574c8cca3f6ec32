"""Say what happens, once: the same line goes to the run's log in the Prefect UI and to the terminal."""

import logging
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

SAID = "deciduous_said"
PROGRESS = "deciduous_progress"


def say(message: str, *, progress: bool = False) -> None:
    """Log one line; `progress` lines replace each other on a terminal. Never put a subject into one."""
    logger().info(message, extra={PROGRESS if progress else SAID: True})


def logger() -> Any:
    """The run's logger inside a run, a plain one outside (a task's function called directly)."""
    inside = FlowRunContext.get() or TaskRunContext.get()
    return get_run_logger() if inside else logging.getLogger("deciduous")
