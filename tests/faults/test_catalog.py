"""A catalog that goes away, comes back, is newer than the code, or whose clock jumps."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine, text

from flows.consolidate import consolidate
from flows.forget import forget
from flows.learn import learn
from flows.train import train
from infra import database
from infra.errors import SchemaError, UnreachableError, UnwritableError
from registry import tables, ticket_log, tickets
from registry.records import Ticket, TicketState
from tests.faults.proxy import REFUSE, before
from tests.faults.test_store import is_retried
from tests.flows.conftest import backbone, deliver, inbox, make_stream, ready
from tests.infra.postgres import cluster, find_binaries

__all__ = ["backbone", "inbox", "ready"]


@pytest.fixture
def own_catalog(tmp_path, set_variable):
    set_variable("DATABASE_URL", f"sqlite:///{tmp_path}/catalog.db")
    database.migrate()
    yield
    database.engine().dispose()


def streams() -> list[str]:
    with database.transaction() as session:
        return [row.name for row in session.query(tables.StreamRow).order_by(tables.StreamRow.name)]


def add(*names: str) -> None:
    with database.transaction() as session:
        session.add_all(
            tables.StreamRow(name=name, config={}, recipe_digest="r", backbone_digest="b") for name in names
        )


@pytest.mark.usefixtures("own_catalog")
def test_a_full_disk_is_one_error_and_keeps_nothing_of_a_transaction(ends):
    """SQLite's own limit on a file's pages stands for the disk."""
    add("before")
    with database.transaction() as session:
        session.execute(text("pragma max_page_count = 1"))  # as many as there are; of this connection, which is kept
    full = r"the catalog in .*catalog\.db cannot be written: .* is full; free some space .* then run again"
    with pytest.raises(UnwritableError, match=full):
        add(*(f"lost-{number}" for number in range(1000)))
    assert streams() == ["before"]
    database.engine().dispose()
    add("after")
    assert streams() == ["after", "before"]
    ends(
        "the disk of the catalog is full (a limit on SQLite's pages stands for it)",
        "one transaction, then another",
        "one error with the path; rolled back whole; the next succeeds once there is space",
        "none: the row from before is there",
    )


def set_revision(number: str) -> None:
    with database.own_connection() as connection:
        connection.execute(text("update alembic_version set version_num = :number"), {"number": number})


@pytest.mark.usefixtures("own_catalog")
def test_older_code_does_not_migrate_a_newer_catalog():
    set_revision("9999")
    with pytest.raises(SchemaError, match=r"newer than this code .* update it or restore a backup"):
        database.migrate()
    assert database.revisions()[0] == "9999"


@pytest.mark.usefixtures("ready", "own_catalog")
@pytest.mark.parametrize("flow", [learn, train, forget, consolidate])
def test_a_worker_with_older_code_changes_nothing(backbone, inbox, ends, flow):
    stream = make_stream("mail", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    given = {learn: (stream,), train: (stream, "mail-a1", 1), forget: ("ticket",), consolidate: (stream,)}[flow]
    set_revision("9999")
    with pytest.raises(SchemaError, match=r"at revision 9999, .* update the code of this worker") as caught:
        flow(*given)
    assert not is_retried(caught.value)
    assert (database.revisions()[0], streams()) == ("9999", [])
    set_revision("0001")
    with pytest.raises(SchemaError, match=r"at revision 0001, .* run `deciduous migrate`"):
        flow(*given)
    ends(
        f"a worker with an older code version runs `{flow.name}`",
        "once",
        "one error that says to update",
        "none: the catalog is untouched",
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
