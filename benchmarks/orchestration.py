"""What orchestration costs a batch, and whether it grows: `python -m benchmarks.orchestration --batches 200 --json`.

Learning is stubbed, here only (`benchmarks.orchestration_worker`). The headline is one worker on a Prefect server over
PostgreSQL, for all the batches; the other servers and numbers of workers are in `others`, for fewer. CPU seconds are
those of the worker: a busy machine leaves them nearly as they are.

Two things that the names do not say. A worker is a plain process that calls `learn` for a stream of its own, again and
again: no work pool, no deployment, and no start of an interpreter for each run, which a worker of Prefect's adds. And
the server is Prefect's alone: catalog and MLflow are on SQLite in every case, the headline too, shared by its workers.

`seconds_batch_200` is the median of batches 191 to 200, `seconds_batch_20` that of batches 11 to 20 of a second stream,
learned in turn with them on the same server; `growth` is the median of their quotients, pair by pair. `course` tells
CPU seconds of the long stream on its way.
"""

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from benchmarks.orchestration_worker import TURNS
from infra import postgres, seaweed
from infra.children import end, spawn
from infra.environment import prefect_environment
from infra.ports import LOOPBACK, free_ports
from infra.settings import settings

EPHEMERAL, SQLITE, POSTGRESQL = "ephemeral", "sqlite", "postgresql"
SERVERS, WORKERS = (EPHEMERAL, SQLITE, POSTGRESQL), (1, 2, 4)
YOUNG = 20
"""Batches of the second stream, with which the end of the long one is compared."""


def measure(folder: Path, server: str, workers: int, batches: int) -> dict[str, Any]:
    """Seconds per batch with so many processes, each on a stream of its own, at the same server."""
    os.environ["DECIDUOUS_HOME"] = str(folder / "home")
    settings.cache_clear()
    young = YOUNG if batches >= 2 * YOUNG else 0
    with ExitStack() as stack:
        stack.callback(seaweed.stop_now, folder / "home")
        variables = {} if server == EPHEMERAL else {"PREFECT_API_URL": stack.enter_context(_server(folder, server))}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        command = [sys.executable, "-m", "benchmarks.orchestration_worker"]
        running = [
            subprocess.Popen(
                [*command, f"stream-{n}", str(batches), str(folder / f"inbox-{n}"), str(young)],
                env={**environment, **variables},
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(workers)
        ]
        answers = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"a worker of {server} with {workers} workers failed; its messages are above")
    return _summary(server, workers, [json.loads(answer.splitlines()[-1]) for answer in answers])


def _summary(server: str, workers: int, took: list[dict[str, list[tuple[float, float]]]]) -> dict[str, Any]:
    """`took` holds, by worker and stream, (seconds, seconds of the worker's CPU) of each batch."""
    batches = len(took[0]["old"])
    steady = median(seconds for each in took for seconds, _ in each["old"][1:])  # the first one creates everything
    return {
        "server": server,
        "workers": workers,
        "batches": batches,
        "seconds_batch": round(steady, 3),
        "batches_per_second": round(workers / steady, 3),
        **(_growth(took[0]["old"], took[0]["young"]) if took[0]["young"] else {}),
    }


def _growth(old: list[tuple[float, float]], young: list[tuple[float, float]]) -> dict[str, Any]:
    pairs = list(zip(old[-TURNS:], young[-TURNS:], strict=True))
    answer: dict[str, Any] = {}
    for name, which in (("", 0), ("cpu_", 1)):
        answer[f"{name}seconds_batch_{len(young)}"] = round(median(y[which] for _, y in pairs), 3)
        answer[f"{name}seconds_batch_{len(old)}"] = round(median(o[which] for o, _ in pairs), 3)
        answer[f"{name}growth"] = round(median(o[which] / y[which] for o, y in pairs), 3)
    stops = range(2 * TURNS, len(old) + 1, 2 * TURNS)
    return {**answer, "course": {stop: round(median(cpu for _, cpu in old[stop - TURNS : stop]), 3) for stop in stops}}


@contextmanager
def _server(folder: Path, kind: str) -> Iterator[str]:
    """The API of a fresh Prefect server over SQLite or PostgreSQL."""
    port, database = free_ports(2)
    with ExitStack() as stack:
        environment = {**os.environ, **prefect_environment(), "PREFECT_HOME": str(folder / "prefect")}
        environment |= {"PREFECT_SERVER_API_HOST": LOOPBACK, "PREFECT_SERVER_API_PORT": str(port)}
        if kind == POSTGRESQL:
            cluster = folder / "postgres"
            stack.callback(end, postgres.start(cluster, database, "benchmark", folder / "postgres.log"), 5)
            postgres.ensure_database(database, "benchmark", "prefect")
            url = postgres.address(database, "benchmark", "prefect", "postgresql+asyncpg")
            environment["PREFECT_API_DATABASE_CONNECTION_URL"] = url
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
        stack.callback(end, spawn(command, folder / "prefect.log", environment), 5)
        api = f"http://{LOOPBACK}:{port}/api"
        waiting = Retrying(stop=stop_after_delay(300), wait=wait_fixed(0.2), retry=retry_if_exception_type(OSError))
        waiting(lambda: urllib.request.urlopen(f"{api}/health", timeout=5).close())
        yield api


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=200, help="of the headline case")
    parser.add_argument("--others", type=int, default=20, help="batches of every other case; 0 leaves them out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cases = [(POSTGRESQL, 1, options.batches)]
    cases += [(s, w, options.others) for s in SERVERS for w in WORKERS if options.others and (s, w) != (POSTGRESQL, 1)]
    found = []
    for server, workers, batches in cases:
        with TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)  # PostgreSQL runs as another user
            found.append(measure(Path(folder), server, workers, batches))
    report = {**found[0], "others": found[1:]}
    print(json.dumps(report) if options.json else json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
