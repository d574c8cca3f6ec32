"""A command that is told to end does so within seconds, also where what it would wait for has ended with it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from time import sleep
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 5
ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ending_soon() -> Iterator[None]:
    """SIGTERM ends the block as SystemExit, so that what this process started ends with it. Where it, or SIGINT, went
    to the whole process group (a supervisor's, or that of Ctrl-C), Prefect's API has ended too and Prefect would wait
    for it for ever: what is not over after GRACE_SECONDS is cut short, as by a crash."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # not a handler: Prefect puts its own in the place of SIGTERM's
    former, handler = signal.set_wakeup_fd(writing), signal.signal(signal.SIGTERM, _raise)
    Thread(target=_cut_short, args=(reading,), name="ending-soon", daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(former)
        os.close(writing)


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _cut_short(reading: int) -> None:
    with os.fdopen(reading, "rb", buffering=0) as told:
        while (byte := told.read(1)) and byte[0] not in ENDING:
            pass
        if byte:  # still open: whoever is told to end twice writes into it again
            sleep(GRACE_SECONDS)
            try:
                _end_what_we_started()
            finally:
                os._exit(128 + byte[0])


def _end_what_we_started() -> None:
    """The S3 where nobody else uses it, Prefect's API, and other processes of our group."""
    import psutil  # noqa: PLC0415  as below: `--help` needs none of it

    from infra import seaweed  # noqa: PLC0415
    from infra.children import end, known  # noqa: PLC0415
    from infra.settings import settings  # noqa: PLC0415

    seaweed.leave(settings().home)
    for child in psutil.Process().children():
        if os.getpgid(child.pid) == os.getpgrp():
            end(known(child.pid))


# a forked process that is told to end tells its parent nothing
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
