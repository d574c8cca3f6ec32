"""Whether a run's memory grows with the history of its stream: `python -m benchmarks.history --batches 16 --json`.

A synthetic stream (benchmarks.deletion) learns batches until it has that many, then twice as many; at both ends the
next batch is learned by a process of its own, and the peak of its resident memory (ru_maxrss) is read. `idle` is the
peak of a process that finds nothing to learn.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.running import home_of_its_own, say, tell
from infra.orchestration import prepare_prefect, without_heartbeat


def measure(folder: Path, batches: int) -> dict[str, Any]:
    from benchmarks.deletion import synthetic_stream  # noqa: PLC0415  # after the environment names this home
    from registry.stream import Stream  # noqa: PLC0415
    from tasks import opening  # noqa: PLC0415

    opening.open_home()
    stream: Stream = synthetic_stream(folder, 2 * batches + 1, 1)
    config = folder / "stream.json"
    config.write_text(stream.model_dump_json())
    _, once, _, twice, idle = (_learn(config, count) for count in (batches, 1, batches - 1, 1, 1))
    return {
        "batches": batches,
        "peak_mb": round(once / 1e6, 1),
        "peak_mb_after_twice_as_many": round(twice / 1e6, 1),
        "ratio": round(twice / once, 4),
        "idle_mb": round(idle / 1e6, 1),
    }


def _learn(config: Path, count: int) -> int:
    """Peak in bytes of a process that learns so many batches."""
    command = [sys.executable, "-m", "benchmarks.history", "--learn", str(config), "--batches", str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


def learn_here(config: Path, count: int) -> int:
    from flows.learn import learn  # noqa: PLC0415
    from registry.stream import Stream  # noqa: PLC0415

    learned = learn(Stream.model_validate_json(config.read_text()), limit=count)
    say(f"{len(learned)} batches")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=16, help="the shorter history")
    parser.add_argument("--learn", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    if options.learn:
        prepare_prefect()
        with without_heartbeat():
            print(learn_here(options.learn, options.batches))
        return
    with home_of_its_own() as folder:
        tell(measure(folder, options.batches), options.json)


if __name__ == "__main__":
    main()
