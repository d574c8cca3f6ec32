"""PostgreSQL under the catalog and under an MLflow server: the same code, the same guarantees."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from operator import not_
from pathlib import Path

import pytest
from mlflow.entities import Dataset, DatasetInput
from sqlalchemy import create_engine, func, select, text
from tenacity import Retrying, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from infra import alias_client, children, database, stack, stored_aliases, tracking
from infra import postgres as postgresql
from infra.environment import mlflow_environment
from infra.errors import UnreachableError
from infra.ports import free_ports
from infra.settings import settings
from registry import aliases, approvals, model_purge, models, tickets
from registry.artifacts import list_versions
from registry.catalog import batches, save_stream, stream_epoch
from registry.dump import dump_rows
from registry.errors import OvertakenError, StateError
from registry.ownership import get_object, put_object
from registry.records import Gate, Request, StoredObject, Ticket, TicketState
from registry.row_sweep import sweep_rows
from registry.stream import Stream
from registry.tables import UtcDateTime
from registry.versions import find_by_cause
from registry.versions import versions as known_versions
from tasks.exclusion import alone
from tasks.release import check_epoch
from tests.flows.conftest import deliver, make_stream
from tests.infra import sharing, test_locks
from tests.infra.postgres import cluster, find_binaries
from tests.infra.test_tracking import moves_agree
from tests.registry import test_migrations

BINARIES = find_binaries()
pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(BINARIES is None, reason="needs PostgreSQL's initdb and pg_ctl"),
]


@pytest.fixture(scope="module")
def postgres():
    with cluster(BINARIES) as address:
        engine = create_engine(f"{address}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for name in ("deciduous", "mlflow", "migrating"):
                connection.execute(text(f"create database {name}"))
        engine.dispose()
        yield address


@pytest.fixture
def catalog(postgres, set_variable):
    set_variable("DATABASE_URL", f"{postgres}/deciduous")
    yield f"{postgres}/deciduous"
    database.engine().dispose()


@pytest.fixture
def server(postgres, s3, set_variable, tmp_path):
    """An MLflow server over PostgreSQL that passes artifacts on to S3, as the operator's guide says; the settings point
    at it."""
    assert s3 is not None
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, **mlflow_environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    store = ["--backend-store-uri", f"{postgres}/mlflow", "--serve-artifacts"]
    store += ["--artifacts-destination", "s3://deciduous/mlflow"]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store]
    child = children.spawn(command, tmp_path / "mlflow.log", environment)
    waiting = Retrying(stop=stop_after_delay(120), wait=wait_fixed(0.2), retry=retry_if_exception_type(OSError))
    waiting(lambda: urllib.request.urlopen(f"{url}/health", timeout=5).close())
    set_variable("MLFLOW_TRACKING_URI", url)
    set_variable("MLFLOW_DATABASE_URL", f"{postgres}/mlflow")
    yield url
    tracking.backend_engine().dispose()
    children.end(child, grace=5)


def test_migrations_race_and_match_the_tables(catalog):
    root = database.MIGRATIONS.parent.parent
    environment = {**os.environ, "DECIDUOUS_DATABASE_URL": catalog, "PYTHONPATH": str(root)}
    script = "from infra import database; database.migrate()"
    racing = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(3)]
    assert [process.wait() for process in racing] == [0, 0, 0]
    check = [sys.executable, "-m", "alembic", "check"]
    subprocess.run(check, cwd=root, env=environment, check=True, capture_output=True)
    with database.transaction() as session:
        assert session.execute(text("select count(*) from stream")).scalar_one() == 0
    database.compact()


def test_migrations_go_up_and_down_with_data(postgres):
    test_migrations.check_up_and_down(f"{postgres}/migrating")


def test_locks_hold_between_processes_and_fall_with_them(catalog, tmp_path):  # noqa: ARG001
    test_locks.check_one_holder_at_a_time()
    test_locks.check_lock_dies_with_its_holder()
    test_locks.check_nothing_is_lost(tmp_path / "counter")


def test_statement_and_lock_time_limits_become_errors_that_are_retried(catalog, set_variable):  # noqa: ARG001
    set_variable("DATABASE_STATEMENT_SECONDS", "0.2")
    with pytest.raises(UnreachableError, match="statement timeout"), database.transaction() as session:
        session.execute(text("select pg_sleep(60)"))
    with database.transaction() as session:
        limits = {
            name: session.execute(text(f"show {name}")).scalar_one() for name in ("lock_timeout", "application_name")
        }
    assert limits == {"lock_timeout": "30s", "application_name": database.process_name()}
    with database.own_connection() as connection:
        assert connection.execute(text("show statement_timeout")).scalar_one() == "0"


def after_silence(connection):
    connection.execute(text("set local idle_in_transaction_session_timeout = 50"))
    connection.execute(text("select pg_sleep(0)"))
    time.sleep(0.2)
    connection.execute(text("select 1"))


def on_a_server_that_only_reads(connection):
    connection.execute(text("set transaction read only"))
    connection.execute(text("create table written (id integer)"))


def cut_off(connection):
    with database.own_connection() as other:
        backend = connection.execute(text("select pg_backend_pid()")).scalar_one()
        other.execute(text(f"select pg_terminate_backend({backend})"))
    connection.execute(text("select 1"))


@pytest.mark.parametrize("fault", [after_silence, on_a_server_that_only_reads, cut_off])
def test_what_ends_a_transaction_is_worth_another_attempt_whoever_opened_it(catalog, fault):  # noqa: ARG001
    with pytest.raises(UnreachableError, match="the catalog at"), database.transaction() as session:
        fault(session)
    with pytest.raises(UnreachableError, match="the catalog at"), database.engine().connect() as connection:
        fault(connection)


def test_waiting_for_the_pool_in_vain_names_its_size(catalog, set_variable, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.1)
    set_variable("DATABASE_POOL", 1)
    with database.engine().connect(), database.engine().connect(), pytest.raises(UnreachableError, match="raise DECID"):
        in_its_own_transaction(lambda session: session.connection())


def test_a_backup_never_holds_a_whole_table(catalog):  # noqa: ARG001
    database.migrate()
    with database.engine().connect() as connection:
        lines = dump_rows(connection)
        assert "alembic_version" in next(lines)
        assert connection.execute(text("select count(*) from pg_cursors")).scalar_one() == 1
        lines.close()


def test_an_object_may_be_larger_than_two_gib(catalog):  # noqa: ARG001
    database.migrate()
    large = StoredObject("rows/large", "d" * 64, 3 << 30, "rows", "shard:large")
    with database.transaction() as session:
        put_object(session, large)
    with database.transaction() as session:
        assert get_object(session, "shard:large", "rows") == large


@pytest.fixture
def passable():
    """A temporary folder whose parents let the system's user of PostgreSQL pass."""
    with tempfile.TemporaryDirectory(prefix="deciduous-own-") as folder:
        yield Path(folder)


def test_a_first_start_that_was_killed_is_made_anew(passable, monkeypatch):
    (port,) = free_ports(1)
    given = passable / "postgres", port, "secret", passable / "log"

    def killed(_, data, *others):  # noqa: ARG001
        data.mkdir()
        (data / "PG_VERSION").write_text("15")  # what initdb writes first
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(postgresql, "_initialise", killed)
        with pytest.raises(KeyboardInterrupt):
            postgresql.start(*given)
    children.end(postgresql.start(*given), grace=10)


def test_moments_are_read_in_utc_whatever_the_zone_of_the_server(catalog, set_variable):
    set_variable("DATABASE_URL", f"{catalog}?options=-c%20timezone%3DPacific/Auckland")
    with database.transaction() as session:
        assert session.scalar(text("select now()")).tzinfo != UTC
        assert session.scalar(select(func.now(type_=UtcDateTime()))).tzinfo == UTC
    database.engine().dispose()


def somebody_waits():
    with database.own_connection() as connection:
        return connection.execute(text("select count(*) from pg_locks where not granted")).scalar_one() > 0


def in_its_own_transaction(work):
    with database.transaction() as session:
        return work(session)


@pytest.fixture
def known(catalog):  # noqa: ARG001
    """The name of a stream without batches."""
    database.migrate()
    name = f"known-{uuid.uuid4().hex[:8]}"
    with database.transaction() as session:
        save_stream(session, Stream(name=name, backbone="b", source="*"), "digest")
    return name


@pytest.fixture
def asked(known):
    """A stream with a ticket 't-1' and a request 'merge:a+b'."""
    day, name = datetime(2026, 11, 1, tzinfo=UTC), known
    with database.transaction() as session:
        tickets.open_ticket(session, Ticket("t-1", name, TicketState.RECEIVED, day, day, 0), [("record", "bb")], "ann")
        approvals.ask(session, Request("merge:a+b", name, Gate.MERGE, "a+b", "why", day))
    return name


def test_of_two_words_at_the_same_time_the_second_is_told_of_the_first(asked):
    def approve(session):
        tickets.approve(session, "t-1", "bo")

    def answer(session, yes=True):
        approvals.answer(session, "merge:a+b", yes, "bo")

    for first, second in ((approve, approve), (answer, partial(answer, yes=False))):
        with ThreadPoolExecutor(1) as beside:
            with database.transaction() as session:
                first(session)
                late = beside.submit(in_its_own_transaction, second)
                waiting = Retrying(stop=stop_after_delay(20), wait=wait_fixed(0.02), retry=retry_if_result(not_))
                waiting(somebody_waits)
            with pytest.raises(StateError):
                late.result()
    with database.transaction() as session:
        assert tickets.ticket_epoch(session, "t-1") == stream_epoch(session, asked) == 1
        assert approvals.get(session, "merge:a+b").approved


TAKE = """
import sys
from tasks.exclusion import alone
with alone(sys.argv[1], 0):
    print("held", flush=True)
"""


def test_who_was_cut_off_from_its_lock_enters_nothing_once_another_has_begun(known):
    def check(session):
        check_epoch(session, known, 0, "version 1")

    with alone(known):
        with database.own_connection() as connection:
            ours = "locktype = 'advisory' and pid <> pg_backend_pid()"
            connection.execute(text(f"select pg_terminate_backend(pid) from pg_locks where {ours}"))
        in_its_own_transaction(check)  # nobody has begun since
        other = test_locks.start(TAKE, known)
        assert other.communicate()[0] == "held\n"
        with pytest.raises(OvertakenError, match=f"deciduous {other.pid} on .* has begun to work on the stream since"):
            in_its_own_transaction(check)
    with alone(known):
        in_its_own_transaction(check)


def test_purge_reaches_the_database_of_a_server(server, s3, tmp_path):
    client = tracking.prepare_tracking()
    marker = f"sUbJeCt-{uuid.uuid4().hex[:12]}"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text(marker)
    experiment = tracking.experiment(client, "purge-production")
    run_id = models.log_run(client, experiment, marker, tags={"t": marker}, model_folder=tmp_path / "model")
    client.log_inputs(run_id, [DatasetInput(Dataset(marker, "digest", "s3", f"s3://inbox/{marker}"))])
    version = models.register_version(client, marker, run_id, models.model_source(run_id), {"t": marker})
    aliases.set_alias(client, marker, "champion", version)
    prefix = tracking.stored_at(client.get_run(run_id).info.artifact_uri).removeprefix("s3://deciduous/")
    assert run_id in prefix
    assert list_versions(s3, "deciduous", prefix) != []
    assert {status.name: status.url for status in stack.stack_status()}["mlflow"] == server

    with tracking.backend() as connection:
        model_purge.delete_version_for_real(connection, s3, "deciduous", marker, version)
        model_purge.purge_run(connection, s3, "deciduous", run_id)
    client.delete_registered_model(marker)
    with tracking.backend() as connection:
        assert sweep_rows(connection, [marker, run_id]) == []
    assert list_versions(s3, "deciduous", prefix) == []
    assert aliases.find_alias(client, marker, "champion") is None


def test_aliases_move_without_the_client_of_mlflow(server):
    """What a rollback asks of the server, or of its tables, and what its own client then sees."""
    assert server is not None
    client, served = tracking.prepare_tracking(), alias_client.open_client()
    assert isinstance(served, alias_client.ServedAliases)
    moves_agree(client, served, "by-http")
    moves_agree(client, stored_aliases.StoredAliases(settings().mlflow_database_url), "by-tables")
    (port,) = free_ports(1)
    with pytest.raises(UnreachableError, match="DECIDUOUS_MLFLOW_TRACKING_URI"):
        aliases.find_alias(alias_client.ServedAliases(f"http://127.0.0.1:{port}"), "by-http", "champion")


def share(work, arguments):
    """What eight processes answer that work at the same time, each with its own arguments."""
    ours = {name: value for name, value in os.environ.items() if name.startswith(("DECIDUOUS_", "PREFECT_"))}
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["tests.infra.sharing"])
    answers = forks.Queue()
    workers = [forks.Process(target=work, args=(ours, *each, answers)) for each in arguments]
    for worker in workers:
        worker.start()
    found = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    return found


@pytest.fixture
def ledger(catalog, s3, tmp_path):
    """A stream of forty objects, and one that differs from another in its name alone."""
    assert catalog is not None
    assert s3 is not None
    database.migrate()
    for number in range(40):
        deliver(tmp_path, f"batch-{number:02}", ["red", "blue"], rows=6)
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "batch-07.jsonl").read_bytes())
    stream = make_stream(f"shared-{uuid.uuid4().hex[:8]}", tmp_path, tmp_path)
    with database.transaction() as session:
        save_stream(session, stream, "digest")
    return stream


def test_eight_workers_on_one_ledger_lose_and_double_nothing(ledger):
    entered = [batch_id for answer in share(sharing.take_in_everything, [(ledger,)] * 8) for batch_id in answer]
    assert len(entered) == len(set(entered)) == 40
    with database.transaction() as session:
        found = batches(session, ledger.name)
        records = session.execute(text("select count(*), count(distinct key) from record")).one()
    assert [batch.ordinal for batch in found] == list(range(40))
    assert {batch.batch_id for batch in found} == set(entered)
    assert {(batch.rows, batch.quarantined) for batch in found} == {(6, 0)}
    assert tuple(records) == (240, 240)


def test_two_hundred_concurrent_registrations_lose_and_double_nothing(ledger, server, tmp_path):
    assert server is not None
    causes = [f"batch:{number}" for number in range(200)]
    (tmp_path / "scratch").mkdir()
    parts = [causes[start::4] for start in range(4)]  # each cause is tried by two of the eight
    scratch = str(tmp_path / "scratch")
    made = share(sharing.register_everything, [(ledger.name, part, scratch) for part in (*parts, *parts)])
    assert sorted(number for answer in made for number in answer) == list(range(1, 201))
    client = tracking.prepare_tracking()
    assert models.list_versions(client, ledger.name) == list(range(1, 201))
    with database.transaction() as session:
        assert sorted(v.version for v in known_versions(session, ledger.name)) == list(range(1, 201))
        assert len({find_by_cause(session, ledger.name, cause).version for cause in causes}) == 200
