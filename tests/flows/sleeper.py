"""A flow that sleeps when it is run for the first time, for a test that kills its worker."""

import time
from pathlib import Path

from prefect import flow


@flow(name="sleeper")
def sleeper(folder: str) -> int:
    """How often it was begun before; every start leaves a file."""
    before = len(list(Path(folder).iterdir()))
    (Path(folder) / f"start-{before}").touch()
    if before == 0:
        time.sleep(3600)
    return before
