"""This run in Prefect: which one it is, what it is called."""

import os
from threading import Thread

from prefect import get_client
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker


def deployed_run() -> str | None:
    """Id of the run that a worker started in this process; None where a person called the flow."""
    return os.environ.get("PREFECT__FLOW_RUN_ID")


def name_run(name: str) -> None:
    """Rename the flow run: what it decided says more than what it was asked."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None and context.flow_run.name != name:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, name=name)


def send_heartbeats(seconds: float = 30) -> None:
    """Wait, so long at most, until what this process has said is with the server; to be called before a suspension.

    The first heartbeat travels for a second or more. One that arrives after its run was suspended is the beginning of a
    silence, and silence is a crash (`tasks.triggers`).
    """
    sending = Thread(target=EventsWorker.instance().wait_until_empty, daemon=True)
    sending.start()
    sending.join(seconds)
