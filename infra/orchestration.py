"""What Prefect has to know before it is imported, and flows without the second that its heartbeat costs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from infra.environment import prefect_environment
from infra.files import make_folder
from infra.services import find_service
from infra.settings import settings

PREFECT = "prefect"


def prepare_prefect() -> None:
    """Set Prefect's environment for this home; call it before the first import of Prefect.

    A variable that is set already keeps its value. The API is PREFECT_API_URL when that is set, else the server
    that `deciduous up` started for this home, else Prefect's own in a child process."""
    wanted = prefect_environment()
    address = api_address()
    if address is not None:
        wanted["PREFECT_API_URL"] = address
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if missing and PREFECT in sys.modules:
        raise RuntimeError(f"Prefect was imported before prepare_prefect() could set {', '.join(sorted(missing))}")
    os.environ.update(missing)
    make_folder(settings().home / "prefect")


def api_address() -> str | None:
    """PREFECT_API_URL, else the server that `deciduous up` started for this home; None where there is none."""
    server = find_service(settings().home, PREFECT)
    return os.environ.get("PREFECT_API_URL") or (f"{server.url}/api" if server is not None else None)


def warm_api() -> Thread:
    """Let Prefect's API start while the caller opens the rest of the home: the first flow would wait 12 s for it."""
    from prefect.client.orchestration import get_client  # noqa: PLC0415  after prepare_prefect

    def greet() -> None:
        with get_client(sync_client=True) as client:
            client.api_healthcheck()

    thread = Thread(target=greet, name="prefect-api", daemon=True)
    thread.start()
    return thread


@contextmanager
def without_heartbeat() -> Iterator[None]:
    """Run flows without the heartbeat thread: each ends about a second earlier.

    The heartbeat tells a server that a process died; a flow that the caller waits for needs none. No environment
    variable can switch it off, only settings in process."""
    # after prepare_prefect, and only for callers that run flows
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings  # noqa: PLC0415

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
