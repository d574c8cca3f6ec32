"""Locks between processes, and between machines where the catalog is PostgreSQL; one falls when its holder dies."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from sqlalchemy import Connection, text
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_random

from infra import database
from infra.errors import HeldError
from infra.files import make_folder
from infra.settings import settings

TRY = text("select pg_try_advisory_lock(:key)")
HOLDER = text(
    "select application_name from pg_locks join pg_stat_activity using (pid) join pg_database on oid = database "
    "where locktype = 'advisory' and granted and objsubid = 1 and ((classid::bigint << 32) | objid::bigint) = :key "
    "and pg_database.datname = current_database()"
)


@contextmanager
def exclusive(name: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock `name` of this catalog while the block runs. Not reentrant.

    Waits up to `wait_seconds` for another holder, then raises HeldError, which names it. PostgreSQL keeps the lock on
    a connection of its own (an advisory lock of the session: a pooler in transaction mode would lose it); SQLite's is
    a file beside the database, so that all processes have to be on one machine."""
    url = database.parse(settings().database_url)
    if url.get_backend_name() == "sqlite":
        take = _file_lock(name, Path(url.database or "").parent / "locks", wait_seconds)
    else:
        take = _advisory_lock(name, wait_seconds)
    with take:
        yield


@contextmanager
def _file_lock(name: str, folder: Path, wait_seconds: float) -> Iterator[None]:
    # the file stays: without it a third process would lock another file of that name
    with (make_folder(folder) / quote(name, safe="")).open("a+") as handle:
        if not _try_until(partial(_try_file, handle), wait_seconds):
            handle.seek(0)
            raise HeldError(name, handle.read() or "another process")
        handle.truncate(0)
        handle.write(database.process_name())
        handle.flush()
        yield


def _try_file(handle: TextIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _advisory_lock(name: str, wait_seconds: float) -> Iterator[None]:
    key = {"key": int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)}
    with database.own_connection() as connection:
        if not _try_until(partial(_try_advisory, connection, key), wait_seconds):
            raise HeldError(name, connection.execute(HOLDER, key).scalar() or "another process")
        yield


def _try_advisory(connection: Connection, key: dict[str, int]) -> bool:
    return bool(connection.execute(TRY, key).scalar_one())


def _try_until(attempt: Callable[[], bool], wait_seconds: float) -> bool:
    waiting = Retrying(
        stop=stop_after_delay(wait_seconds), wait=wait_random(0.02, 0.2), retry=retry_if_result(lambda got: not got)
    )
    try:
        return bool(waiting(attempt))
    except RetryError:
        return False
