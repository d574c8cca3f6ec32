"""One process at a time works on a stream: learn, forget and consolidate would undo each other's work."""

from contextlib import AbstractContextManager

from infra import locks

WAIT_SECONDS = 3600.0


def stream_lock(stream: str, wait_seconds: float = WAIT_SECONDS) -> AbstractContextManager[None]:
    """Hold the stream while the block runs. Not reentrant. Raises HeldError, naming the holder, after the wait."""
    return locks.exclusive(f"stream:{stream}", wait_seconds)
