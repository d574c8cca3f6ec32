"""A catalog that goes away, comes back, is newer than the code, or whose clock jumps."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine, text

from infra import database
from infra.errors import SchemaError, UnreachableError
from registry import tables, ticket_log, tickets
from registry.records import Ticket, TicketState
from tests.faults.proxy import REFUSE, before
from tests.faults.test_store import is_retried
from tests.infra.postgres import cluster, find_binaries


@pytest.fixture
def own_catalog(tmp_path, set_variable):
    set_variable("DATABASE_URL", f"sqlite:///{tmp_path}/catalog.db")
    database.migrate()
    yield
    database.engine().dispose()


def streams() -> list[str]:
    with database.transaction() as session:
        return [row.name for row in session.query(tables.StreamRow).order_by(tables.StreamRow.name)]


def add(name: str) -> None:
    with database.transaction() as session:
        session.add(tables.StreamRow(name=name, config={}, recipe_digest="r", backbone_digest="b"))


@pytest.mark.usefixtures("own_catalog")
def test_a_worker_with_older_code_changes_nothing(ends):
    with database.own_connection() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(SchemaError, match=r"newer than this code .* update it or restore a backup") as caught:
        database.migrate()
    assert not is_retried(caught.value)
    with database.own_connection() as connection:
        assert connection.execute(text("select version_num from alembic_version")).scalar() == "9999"
    ends(
        "a worker with an older code version", "once", "one error that says to update", "none: the catalog is untouched"
    )


@pytest.mark.usefixtures("own_catalog")
def test_a_clock_that_jumps_breaks_no_chain(ends):
    """A year back between two tickets, then ten years on: order comes from numbers, not from the clock."""
    add("mail")
    today = datetime.now(UTC)
    for name, days in (("now", 0), ("back", -365), ("on", 3650)):
        received = today + timedelta(days=days)
        ticket = Ticket(name, "mail", TicketState.RECEIVED, received, tickets.due_date(received, 30), 0)
        with database.transaction() as session:
            tickets.open_ticket(session, ticket, [("subject", name)], "test")
            tickets.approve(session, name, "test", at=received)
    with database.transaction() as session:
        entries, _ = ticket_log.check(session)
        late = [ticket.ticket_id for ticket in tickets.overdue(session, today)]
        epochs = [tickets.ticket_epoch(session, name) for name in ("now", "back", "on")]
    assert entries == 6
    assert late == ["back"]
    assert epochs == [1, 2, 3]
    ends(
        "the clock jumps a year back, then ten years on",
        "a ticket in each",
        "the log verifies, epochs go on, due dates stay",
        "none: every entry of the log is there",
    )


@pytest.fixture(scope="module")
def postgres():
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl")
    with cluster(binaries) as superuser:
        engine = create_engine(f"{superuser}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("create database faults"))
        yield f"{superuser}/faults"
        engine.dispose()


@pytest.mark.faults
def test_a_database_that_ends_our_connections_keeps_nothing_of_a_transaction(postgres, set_variable, ends):
    set_variable("DATABASE_URL", postgres)
    database.migrate()
    add("before")
    with pytest.raises(UnreachableError, match="deciduous doctor") as caught:
        _add_while_connections_end(postgres)
    assert is_retried(caught.value)
    assert streams() == ["before"]
    add("after")
    assert streams() == ["after", "before"]
    database.engine().dispose()
    ends(
        "PostgreSQL ends every connection in the middle",
        "one transaction, then another",
        "one retryable error; rolled back whole; the next transaction succeeds",
        "none: the row from before is there",
    )


@pytest.mark.faults
def test_a_database_that_is_away_is_named_without_its_password(postgres, set_variable, ends):
    address = postgres.rsplit("@", 1)[-1]
    with before(address.partition("/")[0]) as proxy:
        set_variable("DATABASE_URL", f"postgresql+psycopg://postgres:planted@127.0.0.1:{proxy.port}/faults")
        database.migrate()
        known = streams()
        proxy.fail(after=REFUSE)
        with pytest.raises(UnreachableError) as caught:
            streams()
        assert is_retried(caught.value)
        assert "planted" not in str(caught.value)
        proxy.fail()
        assert streams() == known
        database.engine().dispose()
    ends(
        "PostgreSQL is away, then back",
        "one query, then another",
        "one retryable error without the password",
        "none: the same rows as before",
    )


def _add_while_connections_end(address: str) -> None:
    with database.transaction() as session:
        session.add(tables.StreamRow(name="lost", config={}, recipe_digest="r", backbone_digest="b"))
        session.flush()
        _end_connections(address)
        session.execute(text("select 1"))


def _end_connections(address: str) -> None:
    engine = create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            text(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where pid <> pg_backend_pid() and datname = 'faults'"
            )
        )
    engine.dispose()
