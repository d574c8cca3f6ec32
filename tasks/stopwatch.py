"""Where a process's time goes: seconds by name, for reports. Nothing is ever decided from them."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

seconds: defaultdict[str, float] = defaultdict(float)
_running: list[str] = []


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the block's seconds to `name`; a block inside one of the same name counts once."""
    outermost = name not in _running
    start = time.perf_counter()
    _running.append(name)
    try:
        yield
    finally:
        _running.remove(name)
        if outermost:
            seconds[name] += time.perf_counter() - start


def timing(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Time every call of a function under `name`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with timed(name):
                return function(*args, **kwargs)

        return run

    return decorate
