"""A progress bar in the Prefect UI for work that takes a while."""

from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext

T = TypeVar("T")
EVERY_SECONDS = 2.0
"""Between two updates; what is done sooner gets no bar at all."""


class Progress:
    """A bar over a number of parts, each of which tells the share of itself that is done. Silent outside a run."""

    def __init__(self, key: str, what: str, parts: int) -> None:
        self.key, self.what, self.parts = key, what, parts
        self.done, self.told = 0, monotonic()
        self.inside = bool(FlowRunContext.get() or TaskRunContext.get())
        self.artifact: UUID | None = None

    def over(self, parts: Iterable[T]) -> Iterator[T]:
        """The parts, one after the other; the bar is full after the last."""
        for part in parts:
            yield part
            self.done += 1
        if self.artifact is not None:
            self._show(1.0)

    def tell(self, share: float) -> None:
        if self.inside and monotonic() - self.told > EVERY_SECONDS:
            self._show((self.done + share) / self.parts)

    def _show(self, share: float) -> None:
        self.told, percent = monotonic(), min(100.0, 100 * share)
        if self.artifact is None:
            made = create_progress_artifact(percent, key=self.key, description=self.what)
            assert isinstance(made, UUID), "called without an event loop, it answers at once"
            self.artifact = made
        else:
            update_progress_artifact(self.artifact, percent)
