"""Processes that outlive the command that started them, known by pid and time of birth."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isclose
from pathlib import Path

import psutil

from infra.files import make_folder


@dataclass(frozen=True)
class Child:
    """A process. Its time of birth tells it from a later one with the same pid: seconds since the machine's start,
    which stay when its clock is set. What an older version noted, seconds since the epoch, is known too."""

    pid: int
    born: float

    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            is_it = (
                isclose(self.born, _since_start(process), rel_tol=0, abs_tol=0.05)
                or abs(process.create_time() - self.born) < 1
            )
            return is_it and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def known(pid: int) -> Child:
    return Child(pid, _since_start(psutil.Process(pid)))


def this_process() -> Child:
    return known(os.getpid())


def spawn(command: Sequence[str], log: Path, environment: Mapping[str, str], user: str | None = None) -> Child:
    """Start a detached process in a session of its own; it writes to `log` (mode 600). Root may name another user."""
    make_folder(log.parent)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
    finally:
        os.close(descriptor)
    process.returncode = 0  # nobody waits for it: it belongs to no command
    return known(process.pid)


def end(child: Child, grace: float = 0.0) -> bool:
    """End the process and its descendants, hard after `grace` seconds. False when it was gone already."""
    if not child.is_alive():
        return False
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    if grace:
        _signal(family, signal.SIGTERM)
        psutil.wait_procs(family, timeout=grace)
    _signal(family, signal.SIGKILL)
    psutil.wait_procs(family, timeout=10)
    return True


def abandoned(variables: Mapping[str, str]) -> list[Child]:
    """Processes with these variables that a process of the same program started and did not live to end: who adopts
    them runs another one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile, or is another user's
            if variables.items() <= process.environ().items() and not _is_by_its_like(process):
                found.append(known(process.pid))
    return found


def _is_by_its_like(process: psutil.Process) -> bool:
    try:
        parent = process.parent()
        return parent is not None and parent.exe() == process.exe()
    except psutil.AccessDenied:  # another user's
        return False


def _since_start(process: psutil.Process) -> float:
    return round(process.create_time() - psutil.boot_time(), 2)  # Linux counts hundredths


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def _signal(family: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in family:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
