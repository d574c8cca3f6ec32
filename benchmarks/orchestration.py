"""What orchestration costs a batch, and whether it grows: `python -m benchmarks.orchestration --batches 200 --json`.

Learning is stubbed, here only (`benchmarks.orchestration_worker`). The headline is one worker on a Prefect server over
PostgreSQL, for all the batches; the other servers and numbers of workers are in `others`, for fewer. A worker is a
process with a stream of its own. CPU seconds are those of the worker: a busy machine leaves them as they are.
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

from infra import postgres, seaweed
from infra.children import end, spawn
from infra.environment import prefect_environment
from infra.ports import LOOPBACK, free_ports
from infra.settings import settings

EPHEMERAL, SQLITE, POSTGRESQL = "ephemeral", "sqlite", "postgresql"
SERVERS, WORKERS = (EPHEMERAL, SQLITE, POSTGRESQL), (1, 2, 4)
AROUND = 5
"""A batch's seconds are the median of so many before it: single ones are noise."""


def measure(folder: Path, server: str, workers: int, batches: int) -> dict[str, Any]:
    """Seconds per batch with so many processes, each on a stream of its own, at the same server."""
    os.environ["DECIDUOUS_HOME"] = str(folder / "home")
    settings.cache_clear()
    with ExitStack() as stack:
        stack.callback(seaweed.stop_now, folder / "home")
        variables = {} if server == EPHEMERAL else {"PREFECT_API_URL": stack.enter_context(_server(folder, server))}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        command = [sys.executable, "-m", "benchmarks.orchestration_worker"]
        running = [
            subprocess.Popen(
                [*command, f"stream-{n}", str(batches), str(folder / f"inbox-{n}")],
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


def _summary(server: str, workers: int, took: list[list[tuple[float, float]]]) -> dict[str, Any]:
    """`took` holds (seconds, seconds of the worker's CPU) of each batch, by worker."""
    batches = len(took[0])
    steady = [seconds for each in took for seconds, _ in each[1:]]  # the first one starts and creates everything
    last = sorted({n for n in (20, 200, batches) if n <= batches and n >= AROUND})
    at, cpu = ({n: _around([[b[which] for b in each] for each in took], n) for n in last} for which in (0, 1))
    return {
        "server": server,
        "workers": workers,
        "batches": batches,
        "seconds_batch": round(median(steady), 3),
        **{f"seconds_batch_{n}": round(seconds, 3) for n, seconds in at.items()},
        **{f"cpu_seconds_batch_{n}": round(seconds, 3) for n, seconds in cpu.items()},
        "batches_per_second": round(workers / median(steady), 3),
    }


def _around(took: list[list[float]], batch: int) -> float:
    return median(median(each[batch - AROUND : batch]) for each in took)


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
