"""The catalog: does it answer, does its revision fit, would PostgreSQL bear our locks and pools."""

import os
from collections.abc import Iterator

from sqlalchemy import Connection, text

from infra import database
from infra.doctor.findings import Finding, bad, good, poor
from infra.errors import NOT_YOURS, DamagedError
from infra.settings import settings

OLDEST_POSTGRES = 13
PART = "catalog"


def examine() -> Iterator[Finding]:
    if database.is_absent():
        yield good(PART, f"{database.address()} will be made on first use")
        return
    yield _revision()
    with database.own_connection() as connection:
        yield from _postgresql(connection) if connection.dialect.name == "postgresql" else _sqlite(connection)


def _revision() -> Finding:
    current, newest = database.revisions()
    if current == newest:
        return good(PART, f"revision {current}, the newest")
    if current is not None and not database.is_known(current):
        return bad(PART, f"revision {current} is newer than this code", "update Deciduous, or restore a backup")
    return poor(
        PART,
        f"revision {current or 'none'}, {newest} is due",
        "deciduous backup, then deciduous migrate; any run does it",
    )


def _sqlite(connection: Connection) -> Iterator[Finding]:
    file = str(connection.engine.url.database)
    version = connection.exec_driver_sql("select sqlite_version()").scalar_one()
    broken = connection.exec_driver_sql("pragma quick_check(1)").scalar_one()
    if broken != "ok":
        raise DamagedError(file, broken)
    if not os.access(file, os.W_OK):
        yield bad(PART, f"{file} cannot be written: what only reads works", NOT_YOURS)
    yield good(PART, f"SQLite {version} at {file}; for workers on one machine only")


def _postgresql(connection: Connection) -> Iterator[Finding]:
    shown = connection.engine.url.render_as_string(hide_password=True)
    version = connection.execute(text("show server_version")).scalar_one()
    yield good(PART, f"PostgreSQL {version} at {shown}")
    if int(version.split(".")[0]) < OLDEST_POSTGRES:
        yield bad(PART, f"PostgreSQL {version} is not tested", f"upgrade to {OLDEST_POSTGRES} or newer")
    if connection.execute(text("show server_encoding")).scalar_one() != "UTF8":
        yield bad(PART, "the database is not in UTF8", "create it anew with: createdb -E UTF8 -T template0")
    if not connection.execute(text("select has_schema_privilege(current_schema(), 'create')")).scalar_one():
        yield bad(PART, "this user may not create tables", "grant create on schema public to the user")
    allowed = int(connection.execute(text("show max_connections")).scalar_one())
    most = 2 * settings().database_pool + 1
    if allowed < 4 * most:
        yield poor(
            PART,
            f"max_connections {allowed} suffices for {allowed // most} processes of {most}",
            "raise it, or lower DECIDUOUS_DATABASE_POOL",
        )
    if _shares_sessions(connection):
        yield bad(
            PART,
            "a pooler in transaction mode stands between: locks would fall while they are needed",
            "connect to PostgreSQL itself, or use session pooling",
        )


def _shares_sessions(connection: Connection) -> bool:
    """Whether a session setting is gone in the next statement, or another server process answers it."""
    backend = text("select pg_backend_pid(), current_setting('deciduous.probe', true)")
    connection.execute(text("select set_config('deciduous.probe', 'kept', false)"))
    answers = {tuple(connection.execute(backend).one()) for _ in range(5)}
    return len(answers) > 1 or {kept for _, kept in answers} != {"kept"}
