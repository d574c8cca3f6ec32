"""Served by a worker in a test: `learn`, killed before one of its effects when it is run for the first time."""

from pathlib import Path

from prefect import flow

from flows.learn import learn
from infra.settings import settings
from registry.stream import Stream
from tests.faults.crashing import Effects, watch_effects


@flow(name="dying")
def dying(stream: Stream, last: int, folder: str) -> None:
    """Every start leaves a file; so does the number of effects of a run that ends by itself."""
    before = len(list(Path(folder).glob("start-*")))
    (Path(folder) / f"start-{before}").touch()
    effects = Effects(last if before == 0 else 0)
    watch_effects(effects, settings().home)
    learn(stream)
    (Path(folder) / "effects").write_text(str(len(effects.seen)))
