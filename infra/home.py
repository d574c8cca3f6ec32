"""The home folder as a whole."""

import shutil
from pathlib import Path

from infra import seaweed, stack
from infra.errors import StartError

KNOWN = {"s3", "keys", "catalog.db", "prefect", "mlflow.db", "cache", "summary.json", "stack.json"}


def remove(home: Path) -> None:
    """Stop what runs on a home and delete it. Raises StartError for a folder that is no home of ours."""
    home = home.expanduser().resolve()
    if not home.exists() or not any(home.iterdir()):
        return
    if not KNOWN & {entry.name for entry in home.iterdir()}:
        raise StartError(f"{home} holds other things than a Deciduous home; name an empty folder")
    stack.down()
    seaweed.stop_now(home)
    shutil.rmtree(home)
