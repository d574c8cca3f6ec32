"""Say what happens, once: the same line goes to the run's log in the Prefect UI and to the terminal."""

import logging
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

SAID = "deciduous_said"
PROGRESS = "deciduous_progress"


def say(message: str, *, progress: bool = False) -> None:
    """Log one line; `progress` lines replace each other on a terminal. Never put a subject into one."""
    logger().info(message, extra={PROGRESS if progress else SAID: True, **_about()})


def _about() -> dict[str, str]:
    """Ids of what the run works on, for logs that machines read; Prefect adds those of the run."""
    found: dict[str, str] = {}
    for context in (FlowRunContext.get(), TaskRunContext.get()):
        given: dict[str, Any] = (context.parameters or {}) if context else {}
        ids = {"stream": "name", "batch": "batch_id", "shard": "batch_id", "ticket": "ticket_id"}
        for name, attribute in ids.items():
            value = given.get(name)
            id_ = value if name == "stream" and isinstance(value, str) else getattr(value, attribute, None)
            if isinstance(id_, str) and id_:
                found["batch" if name == "shard" else name] = id_
    return found


def logger() -> Any:
    """The run's logger inside a run, a plain one outside (a task's function called directly)."""
    inside = FlowRunContext.get() or TaskRunContext.get()
    return get_run_logger() if inside else logging.getLogger("deciduous")
