"""What Prefect has to know before it is imported, and flows without the second that its heartbeat costs."""

import json
import os
import shutil
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from threading import Thread
from typing import Any

from infra.allocator import return_large_blocks
from infra.environment import prefect_environment
from infra.errors import InfraError, UnreachableError, UnwritableError
from infra.files import locked, make_folder
from infra.services import find_service
from infra.settings import settings
from infra.workers import PoolType, job_template

PREFECT = "prefect"
LEAST_FREE = 8 * 2**20
"""Bytes of the disk without which Prefect's own database takes nothing."""
GRACE_SECONDS = 5.0
OWN_SERVER = {"PREFECT__SERVER_EPHEMERAL": "1"}
"""What Prefect sets for a server that it starts as a child."""


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
    return_large_blocks()
    make_folder(settings().home / "prefect")


def api_address() -> str | None:
    """PREFECT_API_URL, else the server that `deciduous up` started for this home; None where there is none."""
    server = find_service(settings().home, PREFECT)
    return os.environ.get("PREFECT_API_URL") or (f"{server.url}/api" if server is not None else None)


def warm_api() -> Thread:
    """Let Prefect's API start while the caller opens the rest of the home: the first flow would wait 12 s for it."""
    thread = Thread(target=open_api, name="prefect-api", daemon=True)
    thread.start()
    return thread


def open_api() -> None:
    """Ask Prefect's API whether it is there; where it is a child of this process: start it, the first one of a home
    while no other does. Raises UnreachableError, or UnwritableError where the disk is full.

    It makes its tables when it starts, and two that make them at once fail each other."""
    if api_address() is not None:
        _greet()
        return
    if (full := _full_disk(None)) is not None:
        raise full  # its server would be started anew for ever
    _end_abandoned()
    made = settings().home / "prefect" / f"tables-{version(PREFECT)}"
    with nullcontext() if made.exists() else locked(settings().home / "prefect.lock"):
        _greet()
    made.touch()


def _end_abandoned() -> None:
    """End this home's servers whose commands were killed (-9, or for memory) and could not."""
    from infra.children import abandoned, end  # noqa: PLC0415  with an API of an organisation's there are none

    for server in abandoned({**OWN_SERVER, "PREFECT_HOME": str(settings().home / "prefect")}):
        end(server, GRACE_SECONDS)


def _greet() -> None:
    from prefect.client.orchestration import get_client  # noqa: PLC0415  after prepare_prefect

    with answering(), get_client(sync_client=True) as client:
        trouble = client.api_healthcheck()
        if trouble is not None:
            raise _silent(trouble)


@contextmanager
def answering() -> Iterator[None]:
    """Raise UnreachableError for what Prefect's client raises where its server does not answer, or refuses;
    UnwritableError where this home's cannot, for its disk is full."""
    from httpx import HTTPError  # noqa: PLC0415  it comes with Prefect

    try:
        yield
    except HTTPError as error:
        raise _silent(error) from error


def _silent(error: Exception, address: str | None = None) -> InfraError:
    address = address or os.environ.get("PREFECT_API_URL") or None
    if (full := _full_disk(address)) is not None:
        return full
    remedy = "check PREFECT_API_URL and PREFECT_API_AUTH_STRING" if address else "run the command again"
    where = address or "an address of its own"
    return UnreachableError("Prefect", where, f"{str(error) or type(error).__name__}; {remedy}")


def _full_disk(address: str | None) -> InfraError | None:
    """What keeps this home's Prefect, whose database lies in the home, from answering."""
    server = find_service(settings().home, PREFECT)
    is_own = address is None or (server is not None and address.startswith(server.url))
    if not is_own or (free := shutil.disk_usage(settings().home).free) >= LEAST_FREE:
        return None
    return UnwritableError("Prefect's database", str(settings().home / "prefect"), f"{free / 2**20:.1f} MiB are free")


@contextmanager
def without_heartbeat() -> Iterator[None]:
    """Run flows without the heartbeat thread: each ends about a second earlier.

    The heartbeat tells a server that a process died; a flow that the caller waits for needs none. No environment
    variable can switch it off, only settings in process."""
    # after prepare_prefect, and only for callers that run flows
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings  # noqa: PLC0415

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def call_api(api: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """What a Prefect server answers, without importing Prefect. Raises UnreachableError."""
    headers = {"Content-Type": "application/json"}
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    content = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{api}{path}", content, headers), timeout=30) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:  # what is no API answers with a page
        raise _silent(error, api) from error


def pool_names(api: str) -> set[str]:
    return {pool["name"] for pool in call_api(api, "/work_pools/filter", {})}


def ensure_pool(api: str, pool: str) -> None:
    """Make a pool of processes where there is none; one that is there keeps its template."""
    if pool not in pool_names(api):
        template = job_template(PoolType.PROCESS, pool)
        call_api(api, "/work_pools/", {"name": pool, "type": "process", "base_job_template": template})


def online_workers(api: str, pool: str) -> list[str]:
    known = call_api(api, f"/work_pools/{pool}/workers/filter", {})
    return [worker["name"] for worker in known if worker["status"] == "ONLINE"]
