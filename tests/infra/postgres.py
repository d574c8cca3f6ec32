"""A throwaway PostgreSQL cluster in a temporary folder."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from infra.ports import free_ports


def find_binaries() -> Path | None:
    """Folder of initdb and pg_ctl: on the PATH, or where Debian keeps them."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in reversed(places) if (place / "pg_ctl").exists()), None)


@contextmanager
def cluster(binaries: Path) -> Iterator[str]:
    """Yield the address of the superuser."""
    with restartable(binaries) as (address, _):
        yield address


@contextmanager
def restartable(binaries: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the address of the superuser, and what restarts the server without a word to its clients.

    It refuses to run as root, so root lends it to `postgres`."""
    (port,) = free_ports(1)
    folder = Path(tempfile.mkdtemp(prefix="deciduous-pg-"))
    as_user = []
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data, log = folder / "data", folder / "log"
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"

    def call(*command: object) -> None:
        subprocess.run([*as_user, *map(str, command)], check=True, cwd=folder, stdout=subprocess.DEVNULL)

    call(binaries / "initdb", "-D", data, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C", "-U", "postgres")
    call(binaries / "pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")
    try:
        restart = partial(call, binaries / "pg_ctl", "-D", data, "-w", "-l", log, "-m", "immediate", "restart")
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}", restart
    finally:
        call(binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)
