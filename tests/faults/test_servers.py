"""Servers that fail while a stream learns: MLflow, Prefect's API, PostgreSQL. The run goes on, or says what is away."""

import os
import sys
import threading
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from sqlalchemy import create_engine, event, text
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

import flows.forget
import flows.learn
from infra import children, database, tracking
from infra.environment import mlflow_environment
from infra.errors import UnreachableError
from infra.ports import free_ports
from registry import aliases, catalog, decision_log, models, ticket_log, tickets, versions
from registry.records import BatchState, TicketState, VersionState
from registry.versions import CHAMPION
from tasks import queries, registration
from tasks import tickets as opening
from tasks.batches import finish_batch
from tasks.certificates import verify
from tasks.decisions import to_decision
from tasks.opening import certificate_path, open_home
from tasks.promotion import promote_version
from tests.faults.proxy import ERROR, REFUSE, before
from tests.faults.test_store import is_retried
from tests.flows.conftest import backbone, deliver, inbox, make_stream, ready
from tests.flows.server import using
from tests.infra.postgres import find_binaries, restartable

__all__ = ["backbone", "inbox", "ready"]

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ready")]


@pytest.fixture(scope="module")
def mlflow_server(s3, tmp_path_factory):
    """An MLflow server on SQLite, which passes artifacts on to S3."""
    assert s3 is not None
    folder, (port,) = tmp_path_factory.mktemp("mlflow"), free_ports(1)
    environment = {**os.environ, **mlflow_environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--serve-artifacts"]
    store += ["--artifacts-destination", "s3://deciduous/mlflow"]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store]
    child = children.spawn(command, folder / "mlflow.log", environment)
    waiting = Retrying(stop=stop_after_delay(300), wait=wait_fixed(0.2), retry=retry_if_exception_type(OSError))
    waiting(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close())
    yield f"127.0.0.1:{port}"
    children.end(child)


class Interrupted(Exception):  # noqa: N818
    pass


@pytest.fixture
def prepared(mlflow_server, backbone, inbox, tmp_path, set_variable, monkeypatch):
    """A proxy before MLflow, a stream with a champion, and a batch that is ready to be registered."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with before(mlflow_server) as proxy:
        set_variable("DATABASE_URL", f"sqlite:///{tmp_path}/catalog.db")
        set_variable("MLFLOW_TRACKING_URI", proxy.address)
        open_home()
        stream = make_stream(f"away-{uuid.uuid4().hex[:8]}", backbone, inbox)
        deliver(inbox, "batch-0", ["red", "blue"])
        flows.learn.learn(stream)
        deliver(inbox, "batch-1", ["green", "gold"])
        with monkeypatch.context() as patched:
            patched.setattr(flows.learn, "register_batch", interrupt)
            with pytest.raises(Interrupted):
                flows.learn.learn(stream)
        with database.transaction() as session:
            (batch,) = catalog.batches(session, stream.name, BatchState.READ)
        yield proxy, stream, batch
        database.engine().dispose()


def interrupt(*_):
    raise Interrupted


def register(stream, batch):
    """The end of `flows.learn.learn_batch`, each step asked once: who repeats it is Prefect."""
    with database.transaction() as session:
        made = [to_decision(decision_log.find_decision(session, shard.shard_id)) for shard in batch.shards]
    version = registration.register_batch.fn(stream, batch, made)
    promote_version.fn(stream, version)
    finish_batch.fn(stream, batch, made)


def champions(stream) -> tuple[int, int, list[int]]:
    """In the catalog and in MLflow, and MLflow's versions."""
    client = tracking.prepare_tracking()
    with database.transaction() as session:
        ours = versions.alias_of(session, stream.name, CHAMPION)
    return ours, aliases.find_alias(client, stream.name, CHAMPION), models.list_versions(client, stream.name)


@pytest.mark.parametrize(
    ("fault", "name"), [(ERROR, "answers 500"), (REFUSE, "cuts every connection"), (None, "is away")]
)
@pytest.mark.parametrize("when", ["log_run", "register_version"])
def test_a_registration_without_mlflow_is_one_error_and_then_completed(prepared, monkeypatch, ends, fault, name, when):
    proxy, stream, batch = prepared
    work = getattr(models, when)

    def first_fail(*args, **kwargs):
        proxy.leave() if fault is None else proxy.fail(after=fault)
        return work(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(models, when, first_fail)
        with pytest.raises(UnreachableError, match=r"MLflow at .* does not answer: .*DECIDUOUS_MLFLOW") as caught:
            register(stream, batch)
    assert is_retried(caught.value)
    proxy.come_back() if fault is None else proxy.fail()
    assert champions(stream) == (1, 1, [1])
    register(stream, batch)
    assert champions(stream) == (2, 2, [1, 2])
    ends(
        f"MLflow {name} from the {'run' if when == 'log_run' else 'version'} of a registration on",
        "a registration, then another",
        "one retryable error; version 1 serves in the catalog and in MLflow; the next one completes as version 2",
        "none: each batch has one version",
    )


def test_a_promotion_without_mlflow_is_mirrored_by_the_next(prepared, ends):
    proxy, stream, batch = prepared
    with database.transaction() as session:
        made = [to_decision(decision_log.find_decision(session, shard.shard_id)) for shard in batch.shards]
    version = registration.register_batch.fn(stream, batch, made)
    proxy.leave()
    with pytest.raises(UnreachableError, match="MLflow") as caught:
        promote_version.fn(stream, version)
    assert is_retried(caught.value)
    assert queries.status(stream.name)[0]["champion"] == 2, "the catalog decides, MLflow follows"
    proxy.come_back()
    promote_version.fn(stream, version)
    assert champions(stream) == (2, 2, [1, 2])
    with database.transaction() as session:
        moves = [e.version for e in versions.alias_history(session, stream.name) if e.alias == CHAMPION]
    assert moves == [1, 2]
    ends(
        "MLflow is away while the champion moves",
        "a promotion, then another",
        "one retryable error; the catalog's champion is the new one; the next promotion brings MLflow in line",
        "none: the history of the alias has each move once",
    )


def test_a_slow_mlflow_is_waited_for(prepared, ends):
    proxy, stream, batch = prepared
    proxy.delay = 1.0
    proxy.fail()
    register(stream, batch)
    proxy.delay = 0
    assert champions(stream) == (2, 2, [1, 2])
    ends("MLflow takes a second for each connection", "a registration", "waited for", "none: version 2 serves")


@contextmanager
def during(monkeypatch, name: str, strike, flow=flows.learn):
    """Call `strike` once, in another thread's stead, as the step of the flow's module begins its work."""
    step, struck = getattr(flow, name), []

    def work(*args, **kwargs):
        if not struck:
            struck.append(name)
            strike()
        return step(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(flow, name, work)
        yield struck


MINUTE = 60.0


def test_a_run_outlasts_a_minute_without_prefects_api(backbone, inbox, monkeypatch, ends):
    stream = make_stream(f"minute-{uuid.uuid4().hex[:8]}", backbone, inbox)
    deliver(inbox, "batch-0", ["red", "blue"])
    with get_client(sync_client=True) as client:
        client.api_healthcheck()
        address = str(client.api_url)
    with before(address.removeprefix("http://").partition("/")[0]) as proxy, using(f"{proxy.address}/api"):
        knocked, away = [], threading.Event()

        def knock(name, args):
            if away.is_set() and name == "socket.connect" and args[1][1:2] == (proxy.port,):
                knocked.append(args[1])

        def come_back():
            away.clear()
            proxy.come_back()

        def leave():
            proxy.leave()
            away.set()
            threading.Timer(MINUTE, come_back).start()

        sys.addaudithook(knock)  # cannot be taken away again; outside of the minute it does nothing
        with during(monkeypatch, "measure_shift", leave) as struck:
            flows.learn.learn(stream)
    assert struck
    assert knocked, "a call found nobody who listens"
    assert (queries.status(stream.name)[0]["champion"], queries.status(stream.name)[0]["unfinished"]) == (1, [])
    ends(
        "Prefect's API is away for a minute",
        "one run, from its second step on",
        "the run waits and completes",
        "none: the batch is learned and serves",
    )


@pytest.fixture(scope="module")
def postgres():
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl")
    with restartable(binaries) as (superuser, restart):
        engine = create_engine(f"{superuser}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("create database restarted"))
        engine.dispose()
        yield f"{superuser}/restarted", restart


@pytest.fixture
def restarting(postgres, backbone, inbox, set_variable, moment):
    """A stream with one delivery on a catalog in PostgreSQL, and what restarts that server: at once, or in a commit."""
    address, restart = postgres

    def in_the_middle():
        event.listen(database.engine(), "commit", lambda _: restart(), once=True)

    set_variable("DATABASE_URL", address)
    open_home()
    deliver(inbox, "batch-0", ["red", "blue"])
    stream = make_stream(f"restarted-{uuid.uuid4().hex[:8]}", backbone, inbox)
    yield stream, restart if moment == "before" else in_the_middle
    database.engine().dispose()


@pytest.mark.parametrize("moment", ["before", "at the first commit of"])
@pytest.mark.parametrize("step", ["encode_batch", "register_batch", "finish_batch"])
def test_a_run_outlasts_a_restart_of_postgresql(restarting, monkeypatch, ends, step, moment):
    stream, strike = restarting
    with during(monkeypatch, step, strike) as struck:
        assert len(flows.learn.learn(stream)) == 1
    assert struck
    (found,) = queries.status(stream.name)
    assert (found["champion"], found["versions"], found["unfinished"]) == (1, 1, [])
    ends(
        f"PostgreSQL restarts (immediate) {moment} `{step}`",
        "one run of learn",
        "the run completes",
        "none: one batch, one version, which serves",
    )


@pytest.mark.parametrize("moment", ["before", "at the first commit of"])
@pytest.mark.parametrize("step", ["quarantine", "drop", "register_rebuilt", "purge", "close"])
def test_a_deletion_outlasts_a_restart_of_postgresql(restarting, monkeypatch, ends, step, moment):
    stream, strike = restarting
    flows.learn.learn(stream)
    targets = opening.resolve_targets(stream.name, ["person-3"], [])
    ticket_id = opening.open_ticket(stream.name, targets, "test").ticket_id
    with during(monkeypatch, step, strike, flows.forget) as struck:
        assert flows.forget.forget(ticket_id).state == TicketState.COMPLETE
    assert struck
    content = verify(Path(certificate_path(ticket_id)).read_bytes())
    assert (content["guarantee"], content["sweep"]["hits"]) == ("E0", 0)
    with database.transaction() as session:
        certificates = [signed for signed, _ in tickets.certificates(session) if signed == ticket_id]
        champion = versions.get_version(session, stream.name, versions.alias_of(session, stream.name, CHAMPION))
        assert (certificates, champion.state) == ([ticket_id], VersionState.READY)
        assert ticket_log.check(session)[0] > 0
    ends(
        f"PostgreSQL restarts (immediate) {moment} `{step}`",
        "one run of forget",
        "the run completes",
        "none: one certificate (E0, no hit of the sweep), one champion, and the log verifies",
    )
