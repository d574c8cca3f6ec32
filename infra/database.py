"""Open a database session that commits on success and rolls back on error."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from infra.errors import UnreachableError
from infra.files import make_folder
from infra.settings import settings

MIGRATIONS = Path(__file__).resolve().parent.parent / "registry" / "migrations"
MIGRATION_LOCK = 0x_DEC1D  # any number, the same in every process


def engine() -> Engine:
    return _engine(settings().database_url)


@contextmanager
def transaction() -> Iterator[Session]:
    with Session(engine()) as session, session.begin():
        yield session


def migrate() -> None:
    """Bring the catalog to the newest revision. Safe when several processes start at once."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    migrating = open_engine(settings().database_url, foreign_keys=False)  # SQLite alters a table by replacing it
    try:
        with migrating.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except OperationalError as error:
        address = migrating.url.render_as_string(hide_password=True)
        raise UnreachableError("the catalog", address, f"{error.orig}; check DECIDUOUS_DATABASE_URL") from error
    finally:
        migrating.dispose()


def compact(opened: Engine | None = None) -> None:
    """Overwrite what deleted rows left in free pages and the write-ahead log (SQLite), or run VACUUM FULL.

    Archived logs, replicas and backups of a server keep their own copies: they are its operator's."""
    with (opened or engine()).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("vacuum")
            connection.exec_driver_sql("pragma wal_checkpoint(truncate)")
        else:
            connection.execute(text("vacuum full"))


@cache
def _engine(url: str) -> Engine:
    return open_engine(url)


def open_engine(url: str, foreign_keys: bool = True) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    database = make_url(url).database
    if database and database != ":memory:":
        make_folder(Path(database).parent)
    engine = create_engine(url)
    pragmas = (
        "pragma journal_mode=wal",
        "pragma busy_timeout=30000",
        "pragma secure_delete=on",  # zeros over deleted rows, in place
        f"pragma foreign_keys={'on' if foreign_keys else 'off'}",
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin late and commit before DDL
        for pragma in pragmas:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # a reader that turns writer fails at once whatever the busy timeout; one that begins as writer waits
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("begin immediate")

    return engine
