"""What benchmarks share: a home of their own, and how they tell what they found."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def home_of_its_own(threads: int = 1) -> Iterator[Path]:
    """A temporary folder with a home in it. Prefect and the settings read its name when they are first imported, so
    whoever runs in it imports late."""
    with TemporaryDirectory(prefix="deciduous-") as folder:
        os.environ.update({"DECIDUOUS_HOME": f"{folder}/home", "DECIDUOUS_THREADS": str(threads)})
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
        from infra.orchestration import prepare_prefect, without_heartbeat  # noqa: PLC0415

        prepare_prefect()
        with without_heartbeat():
            yield Path(folder)


def tell(figures: Mapping[str, object], as_json: bool) -> None:
    """One JSON line for machines, a line a figure for people."""
    if as_json:
        print(json.dumps(figures), flush=True)
        return
    width = max(map(len, figures))
    print("\n".join(f"{name:{width}}  {value}" for name, value in figures.items()), flush=True)


def say(line: str) -> None:
    """How far it is, where the figures do not go."""
    print(line, file=sys.stderr, flush=True)
