"""One line for many callers: what waits is answered in one pass, by one version, and a moved champion is swapped in."""

import logging
import os
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread

from infra import database
from infra.settings import settings
from registry import versions
from registry.errors import StateError
from registry.records import VersionState
from registry.versions import CHAMPION
from tasks import blob_cache
from tasks.learning.composition import Prediction
from tasks.manifests import Manifest, digests_in, load_manifest
from tasks.serving import Answerer, Request

MOST_ROWS = 64
"""Of one pass; a larger request is a pass of its own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one version said."""

    version: int
    prediction: Prediction


@dataclass(frozen=True)
class _Waiting:
    request: Request
    answer: Future[Answer] = field(default_factory=Future)


class Watch:
    """The version that answers now: looked up again when the last look is older than `serving_seconds`.

    With DECIDUOUS_FOLLOW=champion a moved alias is followed, and the version before it answers on where the new one
    cannot be loaded; otherwise the version stays. Either stops answering when a deletion takes it out of service.
    """

    def __init__(self, stream: str, version: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self._pinned, self._clock = stream, version, clock
        self._looked_at: float | None = None
        self._current: tuple[int, Answerer] | None = None

    def current(self) -> tuple[int, Answerer]:
        """(version, answerer). Raises StateError when nothing may answer."""
        now = self._clock()
        if self._current is None or self._looked_at is None or now - self._looked_at >= settings().serving_seconds:
            self._look()
            self._looked_at = now
        assert self._current is not None
        return self._current

    def _look(self) -> None:
        number, load = self._wanted()
        if self._current is not None and self._current[0] == number:
            return
        try:
            manifest = load()
            self._current = (number, Answerer(manifest))
        except Exception as error:  # whatever it is, the version before is as good as it was
            self._go_on(number, error)
            return
        if settings().follow == "champion":
            # nothing of the version before stays; weights of the home's other streams are fetched again when asked for
            blob_cache.retain(digests_in(manifest), blob_cache.WEIGHTS)

    def _go_on(self, number: int, error: Exception) -> None:
        """Stay with the version before, if that may still answer; the next look tries the new one again."""
        before, self._current = self._current, None  # a version that may not answer any more must not
        if before is None or self._state_of(before[0]) != VersionState.READY:
            raise error
        self._current = before
        kept = f"version {number} of {self.stream!r} cannot be loaded, version {before[0]} answers on: {error}"
        logging.getLogger("deciduous").warning(kept)

    def _state_of(self, version: int) -> VersionState:
        with database.transaction() as session:
            return versions.get_version(session, self.stream, version).state

    def _wanted(self) -> tuple[int, Callable[[], Manifest]]:
        if settings().follow == "champion" or self._pinned is None:
            with database.transaction() as session:
                number = versions.alias_of(session, self.stream, CHAMPION)
            if number is None:
                self._current = None
                raise StateError(f"stream {self.stream!r} has no champion now; promote a version, then ask again")
            champion = number
            return champion, lambda: load_manifest(self.stream, champion)
        pinned = self._pinned
        state = self._state_of(pinned)
        if state != VersionState.READY:
            self._current = None
            raise StateError(
                f"version {pinned} of {self.stream!r} is {state}: it was taken out of service; use another"
            )
        return pinned, lambda: load_manifest(self.stream, pinned)


def registered_as(stream: str, manifest_sha256: str) -> int:
    """The version number of a manifest: of several that are one model the champion, else the newest. Raises StateError
    where the catalog knows none: it is that of another home, whose stream of this name is another."""
    found, champion = list[int](), None
    if database.revisions()[0] is not None:
        with database.transaction() as session:
            found = versions.find_by_manifest(session, stream, manifest_sha256)
            champion = versions.alias_of(session, stream, CHAMPION)
    if not found:
        raise StateError(
            f"the catalog {database.address()} knows no version of stream {stream!r} with this "
            "manifest: set DECIDUOUS_HOME, or the variables of the servers, to where it was registered (`eval "
            '"$(deciduous env)"` there), then load it again'
        )
    return champion if champion in found else found[0]


class Line:
    """Requests wait here; one thread takes all that wait at once. Every answer comes from exactly one version."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.open()
        _lines.add(self)

    def open(self) -> None:
        self._waiting: SimpleQueue[_Waiting | None] = SimpleQueue()
        # neither queue nor thread holds the line: a model that was loaded and let go leaves neither thread nor weights
        weakref.finalize(self, self._waiting.put, None)
        where = (self._waiting, self._watch)
        Thread(target=_serve, args=where, daemon=True, name=f"answers-{self._watch.stream}").start()

    def ask(self, inputs: Sequence[bytes], groups: Sequence[str]) -> Answer:
        """Wait for the answer. Raises what went wrong with this request, whatever the others of its pass get."""
        waiting = _Waiting(Request(inputs, groups))
        self._waiting.put(waiting)
        return waiting.answer.result()


_lines: weakref.WeakSet[Line] = weakref.WeakSet()


def _open_again() -> None:
    """In a forked process, which has none of the threads."""
    for line in list(_lines):
        line.open()


os.register_at_fork(after_in_child=_open_again)


def _serve(waiting: SimpleQueue[_Waiting | None], watch: Watch) -> None:
    while (first := waiting.get()) is not None:
        taken = [first]
        while sum(len(each.request.inputs) for each in taken) < MOST_ROWS:
            try:
                following = waiting.get_nowait()
            except Empty:
                break
            assert following is not None, "who waits holds the line"
            taken.append(following)
        _answer(taken, watch)


def _answer(taken: Sequence[_Waiting], watch: Watch) -> None:
    try:
        version, answerer = watch.current()
        found = answerer.answer_each([each.request for each in taken])
    except Exception as error:  # to every caller of the pass
        for each in taken:
            each.answer.set_exception(error)
        return
    for each, outcome in zip(taken, found, strict=True):
        if isinstance(outcome, Exception):
            each.answer.set_exception(outcome)
        else:
            each.answer.set_result(Answer(version, outcome))
