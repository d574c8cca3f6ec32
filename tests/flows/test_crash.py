"""Killed between any two effects of a registration: the old or the new champion serves, a repeated run completes."""

import multiprocessing
import os
import uuid

import mlflow
import pytest

import flows.learn
from infra import database, tracking
from registry import aliases, catalog, models, versions
from registry.records import BatchState
from registry.versions import CHAMPION
from tasks import opening, queries
from tasks.manifests import load_manifest
from tasks.serving import Answerer
from tests.flows import crashing
from tests.flows.conftest import deliver, make_stream

pytestmark = [pytest.mark.services, pytest.mark.timeout(2400)]  # a process for each effect
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.flows.crashing", "tasks.registration", "mlflow.pyfunc", "torch"])


class Interrupted(Exception):  # noqa: N818
    pass


@pytest.fixture
def prepared(ready, backbone, inbox, tmp_path, set_variable, monkeypatch):  # noqa: ARG001
    """A stream with a champion, and a batch that is ready to be registered; databases that can be copied."""
    use(set_variable, tmp_path / "first")
    opening.open_home()
    stream = make_stream(f"crashing-{uuid.uuid4().hex[:8]}", backbone, inbox)
    deliver(inbox, "batch-0", ["red", "blue"])
    flows.learn.learn(stream)
    deliver(inbox, "batch-1", ["green", "gold"])

    def interrupt(*_):
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(flows.learn, "register_batch", interrupt)
        with pytest.raises(Interrupted):
            flows.learn.learn(stream)
    with database.transaction() as session:
        (batch,) = catalog.batches(session, stream.name, BatchState.READ)
    return stream, batch


def use(set_variable, folder):
    for name, file in (("DATABASE_URL", "catalog.db"), ("MLFLOW_TRACKING_URI", "mlflow.db")):
        set_variable(name, f"sqlite:///{folder / file}")


def copy_to(folder):
    folder.mkdir()
    for engine, file in ((database.engine(), "catalog.db"), (tracking.backend_engine(), "mlflow.db")):
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"vacuum into '{folder / file}'")


def register_in_child(stream, batch, last):
    """(exit code, effects) of a process that registers the batch and dies at effect `last`."""
    ours = {name: value for name, value in os.environ.items() if name.startswith(("DECIDUOUS_", "PREFECT_"))}
    receiving, sending = FORKS.Pipe(duplex=False)
    child = FORKS.Process(target=crashing.run, args=(ours, stream, batch, last, sending))
    child.start()
    sending.close()
    effects = receiving.recv() if last == 0 else []
    child.join()
    return child.exitcode, effects


def check_somebody_serves(stream, answers):
    """The champion of the catalog and of MLflow is the old or the new version, and each answers."""
    version = queries.status(stream.name)[0]["champion"]
    manifest = load_manifest(stream.name, version)
    assert version in (1, 2)
    assert len(Answerer(manifest).answer([b"a b c", b"s t u"], ["default"]).labels) == 2
    theirs = aliases.get_alias(tracking.prepare_tracking(), stream.name, CHAMPION)
    assert theirs in (1, version)
    if theirs not in answers:
        answers[theirs] = mlflow.pyfunc.load_model(f"models:/{stream.name}@champion").predict(["a b c"])


def test_a_registration_killed_between_any_two_effects_leaves_a_champion_and_is_completed(
    prepared, tmp_path, set_variable
):
    stream, batch = prepared
    copy_to(tmp_path / "counting")
    use(set_variable, tmp_path / "counting")
    code, effects = register_in_child(stream, batch, 0)
    assert code == 0
    assert len(effects) > 10
    assert {"commit", "write"} == set(effects)

    answers = {}
    for last in range(1, len(effects) + 1):
        use(set_variable, tmp_path / "first")
        copy_to(tmp_path / str(last))
        use(set_variable, tmp_path / str(last))
        assert register_in_child(stream, batch, last)[0] == -9
        check_somebody_serves(stream, answers)
        crashing.finish(stream, batch)
        with database.transaction() as session:
            assert versions.alias_of(session, stream.name, CHAMPION) == 2
            assert [v.version for v in versions.versions(session, stream.name)] == [1, 2]
            assert catalog.get_batch(session, batch.batch_id).state == BatchState.DONE
        client = tracking.prepare_tracking()
        assert models.list_versions(client, stream.name) == [1, 2]
        assert aliases.get_alias(client, stream.name, CHAMPION) == 2
        database.engine().dispose()
        tracking.backend_engine().dispose()
    assert set(answers) <= {1, 2}
