"""A Prefect server of a test module's own, on PostgreSQL where there is one, and workers for it."""

import os
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prefect import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from sqlalchemy import create_engine, text
from tenacity import Retrying, retry_if_exception_type, retry_if_not_result, stop_after_delay, wait_fixed

from infra.children import Child, end, spawn, tail
from infra.environment import prefect_environment
from infra.orchestration import call_api
from infra.ports import LOOPBACK, free_ports
from infra.workers import worker_command, worker_environment
from tests.infra.postgres import cluster, find_binaries

R = TypeVar("R")


@contextmanager
def prefect_server(folder: Path, **variables: str) -> Iterator[str]:
    """The address of a fresh server's API."""
    (port,) = free_ports(1)
    api, log = f"http://{LOOPBACK}:{port}/api", folder / "prefect.log"
    with ExitStack() as stack:
        binaries = find_binaries()
        if binaries is not None:
            variables["PREFECT_API_DATABASE_CONNECTION_URL"] = _database(stack.enter_context(cluster(binaries)))
        environment = {
            **os.environ,
            **prefect_environment(),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_API_HOST": LOOPBACK,
            "PREFECT_SERVER_API_PORT": str(port),
            **variables,
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
        child = spawn(command, log, environment)
        stack.callback(end, child, 5)
        waiting = Retrying(stop=stop_after_delay(300), wait=wait_fixed(0.2), retry=retry_if_exception_type(OSError))
        try:
            waiting(lambda: urllib.request.urlopen(f"{api}/health", timeout=5).close())
        except Exception as error:
            raise RuntimeError(tail(log)) from error
        yield api


@contextmanager
def using(api: str) -> Iterator[str]:
    """This process and its children talk to that server inside the block."""
    os.environ["PREFECT_API_URL"] = api
    try:
        with temporary_settings({PREFECT_API_URL: api}):
            yield api
    finally:
        del os.environ["PREFECT_API_URL"]


def _database(superuser: str) -> str:
    engine = create_engine(f"{superuser}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("create database prefect"))
    engine.dispose()
    return f"{superuser}/prefect".replace("+psycopg", "+asyncpg")


@contextmanager
def worker(pool: str, log: Path, **variables: str) -> Iterator[Child]:
    """A process worker over this home; ended hard with everything that it started."""
    child = spawn(worker_command(pool), log, {**worker_environment(), **variables})
    try:
        yield child
    finally:
        end(child)


@contextmanager
def deciduous(*words: str, log: Path, **variables: str) -> Iterator[Child]:
    """A command line that runs until it is ended."""
    main = "import sys; from flows.cli import main; sys.argv[0] = 'deciduous'; main()"
    child = spawn([sys.executable, "-c", main, *words], log, {**worker_environment(), **variables})
    try:
        yield child
    finally:
        end(child)


def until(look: Callable[[], R], seconds: float = 120) -> R:
    """What `look` answers as soon as it is true; fails with its last answer after the time."""

    def fail(state) -> R:
        raise AssertionError(f"after {seconds} s: {state.outcome.result() if state.outcome else None!r}")

    waiting = Retrying(
        stop=stop_after_delay(seconds), wait=wait_fixed(0.2), retry=retry_if_not_result(bool), retry_error_callback=fail
    )
    return waiting(look)


def events_of(event: str, resource: str) -> list[dict[str, Any]]:
    """What the server's feed holds of an event about a resource, newest first."""
    wanted = {"event": {"name": [event]}, "resource": {"id": [resource]}}
    found: list[dict[str, Any]] = call_api(os.environ["PREFECT_API_URL"], "/events/filter", {"filter": wanted})[
        "events"
    ]
    return found


def runs_of(flow: str) -> list[FlowRun]:
    """Every run of a flow on the server, oldest first."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))
    return sorted(found, key=lambda run: run.created)
