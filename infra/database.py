"""Open a database session that commits on success and rolls back on error."""

import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from infra.errors import DamagedError, InfraError, SchemaError, SettingsError, UnreachableError, UnwritableError
from infra.files import make_folder
from infra.settings import Settings, settings

if TYPE_CHECKING:
    from alembic.config import Config

# ruff: noqa: PLC0415  Alembic is imported where a migration is due or asked about: it takes a third of a second

MIGRATIONS = Path(__file__).resolve().parent.parent / "registry" / "migrations"
MIGRATION_LOCK = 0x_DEC1D  # any number, the same in every process
LOCK_SECONDS = 30  # what a statement waits for a lock that another transaction holds
IDLE_SECONDS = 600  # a transaction silent for so long has lost its process; some write blobs in between


def engine() -> Engine:
    return _engine(settings())


@contextmanager
def transaction() -> Iterator[Session]:
    """A session that commits at the end. Raises UnreachableError where a repetition may help: the server is away, a
    lock or a statement took too long, a deadlock. Raises UnwritableError where the disk of an SQLite file is full."""
    try:
        with Session(engine()) as session, session.begin():
            yield session
    except PoolTimeoutError as error:
        what, address = "the catalog", engine().url.render_as_string()
        raise UnreachableError(what, address, f"{error}; raise DECIDUOUS_DATABASE_POOL") from error


@contextmanager
def own_connection() -> Iterator[Connection]:
    """A connection outside of the pool that commits each statement and knows no time limit; closed at the end."""
    own = open_engine(settings().database_url, pooled=False)
    with own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def migrate() -> None:
    """Bring the catalog to the newest revision. Safe when several processes start at once.

    Raises SchemaError when the catalog is newer than this code."""
    if _recorded_revision() == newest_revision():
        return
    with replacing() as connection:
        bring(connection, "head")


def newest_revision() -> str:
    """The newest revision that this code knows: its migrations are numbered in their files' names."""
    return max(file.name.partition("_")[0] for file in MIGRATIONS.glob("versions/[0-9]*.py"))


def address() -> str:
    """Where the catalog is, without a password; opens nothing."""
    return parse(settings().database_url).render_as_string()


def is_absent() -> bool:
    """Whether the catalog is an SQLite file that opening it would make."""
    url = parse(settings().database_url)
    return url.get_backend_name() == "sqlite" and not Path(url.database or "").exists()


def _recorded_revision() -> str | None:
    if is_absent():
        return None
    with own_connection() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("select version_num from alembic_version")).scalar()


@contextmanager
def replacing(dry_run: bool = False) -> Iterator[Connection]:
    """One transaction for changes of the tables themselves, one process at a time; a dry run is rolled back."""
    # SQLite alters a table by replacing it, which its foreign keys would forbid
    migrating = open_engine(settings().database_url, foreign_keys=False, pooled=False)
    with migrating.connect() as connection, connection.begin() as whole:
        if connection.dialect.name == "postgresql":
            connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        yield connection
        if dry_run:
            whole.rollback()


def bring(connection: Connection, revision: str) -> None:
    """Move the tables up or down to a revision, within the caller's transaction."""
    from alembic import command
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = alembic_config()
    config.attributes["connection"] = connection
    current = MigrationContext.configure(connection).get_current_revision()
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]  # newest first
    is_down = revision in known and current in known and known.index(revision) > known.index(current)
    try:
        (command.downgrade if is_down else command.upgrade)(config, revision)
    except CommandError as error:
        raise SchemaError(f"the catalog is newer than this code ({error}); update it or restore a backup") from error


def revisions() -> tuple[str | None, str]:
    """(revision of the catalog, newest revision that this code knows); None for a catalog without tables."""
    return _recorded_revision(), newest_revision()


def check_revision() -> None:
    """One query. Raises SchemaError where the catalog's tables are not of the revision that this code was written for.

    Who starts flows may not be who migrates: a worker goes on with the code that it has."""
    found, newest = revisions()
    if found == newest:
        return
    older = found is None or is_known(found)
    remedy = "run `deciduous migrate`" if older else "update the code of this worker"
    raise SchemaError(f"the catalog is at revision {found}, this code was written for {newest}; {remedy}")


def is_known(revision: str) -> bool:
    from alembic.script import ScriptDirectory

    return revision in {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}


def alembic_config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _tell_failures(opened: Engine) -> None:
    """Have every statement raise our errors where the database is at fault: whoever uses the engine, what is worth
    another attempt is known as such."""

    @event.listens_for(opened, "handle_error")
    def tell(context: Any) -> None:
        error, is_sqlite = context.sqlalchemy_exception, opened.dialect.name == "sqlite"
        # what ended a transaction (idle for too long, on a server that only reads) is an InternalError of psycopg
        at_fault = isinstance(error, OperationalError | InternalError) and not context.is_pre_ping
        if at_fault and not (is_sqlite and not _is_unwritable(error) and "locked" not in str(error.orig)):
            raise _failure(error, opened.url) from error


def _failure(error: DBAPIError, url: URL) -> InfraError:
    """Names the database, its address without the password, the cause and the remedy."""
    what, variable = "the catalog", "DECIDUOUS_DATABASE_URL"
    if url != parse(settings().database_url):
        what, variable = "MLflow's database", "DECIDUOUS_MLFLOW_TRACKING_URI"
        if settings().mlflow_database_url:
            variable = "DECIDUOUS_MLFLOW_DATABASE_URL"
    if _is_unwritable(error):
        return UnwritableError(what, str(url.database), str(error.orig))
    return UnreachableError(what, url.render_as_string(), f"{error.orig}; check {variable} with deciduous doctor")


def _is_unwritable(error: DBAPIError) -> bool:
    """Of SQLite, by the low byte of its code: the disk is full, fails, or the file is read-only or cannot be opened."""
    codes = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in codes


def process_name() -> str:
    """How this process is called in locks and in pg_stat_activity, which keeps 63 characters."""
    return f"deciduous {os.getpid()} on {socket.gethostname()}"[:63]


def compact(opened: Engine | None = None) -> None:
    """Overwrite what deleted rows left in free pages and the write-ahead log (SQLite), or run VACUUM FULL.

    Archived logs, replicas and backups of a server keep their own copies: they are its operator's."""
    own = open_engine((opened or engine()).url.render_as_string(hide_password=False), pooled=False)
    with own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("vacuum")
            connection.exec_driver_sql("pragma wal_checkpoint(truncate)")
        else:
            connection.execute(text("vacuum full"))


@cache
def _engine(config: Settings) -> Engine:
    opened = open_engine(config.database_url)
    # a forked process opens connections of its own and leaves its parent's open
    os.register_at_fork(after_in_child=partial(opened.dispose, close=False))
    return opened


def parse(address: str) -> URL:
    try:
        return make_url(address)
    except ArgumentError as error:
        raise _unknown(str(error)) from None
    except ValueError:
        raise _unknown("its port is no number") from None


def open_engine(url: str, foreign_keys: bool = True, pooled: bool = True) -> Engine:
    """An engine; one that is not pooled opens a connection each time and puts no limit on a statement."""
    backend = parse(url).get_backend_name()
    try:
        if backend == "postgresql":
            opened = _postgresql(url, pooled)
        elif backend == "sqlite":
            opened = _sqlite(url, foreign_keys, pooled)
        else:
            opened = create_engine(url, pool_pre_ping=True)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise _unknown(str(error)) from None
    _tell_failures(opened)
    return opened


def _unknown(why: str) -> SettingsError:
    known = "postgresql+psycopg://USER:PASSWORD@HOST/NAME, or sqlite:///FILE"
    return SettingsError(f"a database's address is of no known form ({why}); give {known}")


def _postgresql(url: str, pooled: bool) -> Engine:
    limits = {
        "statement_timeout": int(settings().database_statement_seconds * 1000) if pooled else 0,
        "lock_timeout": LOCK_SECONDS * 1000 if pooled else 0,
        "idle_in_transaction_session_timeout": IDLE_SECONDS * 1000,
    }
    asked = {
        "application_name": process_name(),
        "connect_timeout": "10",
        "keepalives_idle": "30",  # a lost machine lets go of its locks in a minute, not in two hours
        "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
    }
    # what the address itself says comes first
    asked = {name: value for name, value in asked.items() if name not in make_url(url).query}
    if not pooled:
        return create_engine(url, connect_args=asked, poolclass=NullPool)
    size = settings().database_pool
    return create_engine(
        url, connect_args=asked, pool_size=size, max_overflow=size, pool_timeout=LOCK_SECONDS, pool_pre_ping=True
    )


def _sqlite(url: str, foreign_keys: bool, pooled: bool) -> Engine:
    database = make_url(url).database
    if database and database != ":memory:":
        make_folder(Path(database).parent)
    engine = create_engine(url) if pooled else create_engine(url, poolclass=NullPool)
    pragmas = (
        "pragma journal_mode=wal",
        f"pragma busy_timeout={LOCK_SECONDS * 1000}",
        "pragma secure_delete=on",  # zeros over deleted rows, in place
        f"pragma foreign_keys={'on' if foreign_keys else 'off'}",
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin late and commit before DDL
        for pragma in pragmas:
            connection.execute(pragma)

    @event.listens_for(engine, "handle_error")
    def tell_damage(context: Any) -> None:
        code = getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise DamagedError(str(database), str(context.original_exception)) from context.original_exception

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # a reader that turns writer fails at once whatever the busy timeout; one that begins as writer waits
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("begin immediate")

    return engine
