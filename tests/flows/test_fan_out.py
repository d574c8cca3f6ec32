"""Several adapters train at once, on threads or on two nodes of a Ray cluster: the bytes are those of one by one."""

import json
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName

from flows.forget import forget
from flows.learn import learn
from infra import database
from infra.ports import free_ports
from infra.settings import settings
from infra.workers import worker_environment
from registry import adapters
from registry.errors import StateError
from registry.records import TicketState
from registry.sections import AdapterOptions, Runner, TaskOptions
from tasks import runners, tickets
from tasks.opening import open_home
from tests.flows.conftest import deliver, make_stream
from tests.flows.server import until
from tests.flows.test_determinism import learned_digests

pytestmark = pytest.mark.usefixtures("ready")


def grouped(name, backbone, inbox, **tasks):
    """A stream whose one batch has three groups, each with an adapter of its own."""
    stream = make_stream(name, backbone, inbox, tasks=TaskOptions(**tasks))
    columns = stream.columns.model_copy(update={"group": "team"})
    rows = deliver(inbox, "01", ["red", "blue"], rows=180)
    lines = [json.dumps({**row, "team": "abc"[n // 2 % 3]}) for n, row in enumerate(rows)]
    (inbox / "01.jsonl").write_text("\n".join(lines) + "\n")
    return stream.model_copy(update={"columns": columns})


def in_another_home(stream, folder, set_variable) -> list[str]:
    set_variable("HOME", folder)
    open_home()
    return sorted(learned_digests(stream).values())


def test_three_threads_train_the_bytes_of_one(backbone, inbox, set_variable, tmp_path_factory):
    stream = grouped("threads", backbone, inbox, workers=3)
    here = sorted(learned_digests(stream).values())
    one = stream.model_copy(update={"tasks": TaskOptions()})
    assert here == in_another_home(one, tmp_path_factory.mktemp("one"), set_variable)
    assert len(here) > 9


def spans(stream) -> list[tuple]:
    """(start, end) of each adapter's training, in order, as Prefect has them."""
    names = TaskRunFilter(name=TaskRunFilterName(like_=f"train-{stream.name}-a"))

    def ended() -> list[tuple]:
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs(task_run_filter=names)
        found = sorted((run.start_time, run.end_time) for run in runs if run.state_name == "Completed")
        return found if len(found) == 3 else []

    return until(ended)


@pytest.mark.parametrize("workers", [1, 3])
def test_as_many_adapters_train_at_once_as_the_stream_names_workers(workers, backbone, inbox):
    slow = AdapterOptions(rank=4, last_layers=2, epochs=30)
    stream = grouped(f"at-once-{workers}", backbone, inbox, workers=workers).model_copy(update={"adapter": slow})
    learn(stream)
    (_, first_end), (second_start, second_end), (third_start, _) = spans(stream)
    assert (second_start < first_end, third_start < second_end) == ((True, True) if workers == 3 else (False, False))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(runners.CLASSES, Runner.RAY, ("no_such_module", "RayTaskRunner"))
    stream = make_stream("extra", settings().home, settings().home, tasks=TaskOptions(runner=Runner.RAY))
    with pytest.raises(StateError, match=r"pip install 'deciduous\[ray\]'"):
        runners.runner_of(stream)


@pytest.mark.services  # two interpreters that import torch, for each slice
@pytest.mark.timeout(2400)
def test_two_processes_train_one_adapter_and_a_deletion_needs_one(backbone, inbox):
    stream = make_stream("shared", backbone, inbox, tasks=TaskOptions(processes=2))
    deliver(inbox, "01", ["red", "blue"], rows=60)
    learn(stream)
    with database.transaction() as session:
        (trained,) = adapters.adapters(session, stream.name)
    assert trained.recipe["trained_on"] == "cpu × 2"
    ticket = tickets.open_ticket(stream.name, tickets.resolve_targets(stream.name, ["person-3"], []), "test")
    assert forget(ticket.ticket_id).state == TicketState.COMPLETE, "what it rebuilt is byte-equal to one from scratch"
    with database.transaction() as session:
        rebuilt = adapters.get_adapter(session, trained.adapter_id)
    assert rebuilt.recipe == {**trained.recipe, "trained_on": "cpu"}


def small_node() -> dict[str, int | bool]:
    """One core of a Ray cluster, and its agents' ports, so that Ray need not wait until they have told theirs."""
    ports = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    named = dict(zip(ports, free_ports(len(ports)), strict=True))
    return {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False, **named}


def patient_raylet(raylet: str, file: Path) -> str:
    """Ray tells the port of a node's dashboard agent to the agent and not to the node, which dies where the agent, an
    interpreter that imports for a while, has not told it within 15 s. This raylet reads it from the agent's command."""
    file.write_text(
        "#!/bin/sh\n"
        'port=$(echo "$@" | grep -o "listen-port=[0-9]*" | cut -d = -f 2)\n'
        f'exec {raylet} "--dashboard_agent_listen_port=$port" "$@"\n'
    )
    file.chmod(0o755)
    return str(file)


@pytest.mark.services
@pytest.mark.timeout(2400)
@pytest.mark.usefixtures("server")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_ray_nodes_train_the_same_bytes(backbone, inbox, set_variable, monkeypatch, tmp_path_factory):
    pytest.importorskip("prefect_ray")
    import ray  # noqa: F401, PLC0415  whole, before a part of it: else its parts do not find each other
    from ray._private import services  # noqa: PLC0415  an extra
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    raylet = patient_raylet(services.RAYLET_EXECUTABLE, tmp_path_factory.mktemp("ray") / "raylet")
    monkeypatch.setattr(services, "RAYLET_EXECUTABLE", raylet)

    for name, value in worker_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", "600")
    stream = grouped("rays", backbone, inbox, runner=Runner.RAY)
    cluster = Cluster()
    try:
        cluster.add_node(**small_node())
        cluster.add_node(**small_node())
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        here = sorted(learned_digests(stream).values())
    finally:
        cluster.shutdown()
    one = stream.model_copy(update={"tasks": TaskOptions()})
    assert here == in_another_home(one, tmp_path_factory.mktemp("one"), set_variable)


@pytest.mark.services
@pytest.mark.timeout(2400)
@pytest.mark.usefixtures("server")
@pytest.mark.filterwarnings("ignore")  # Dask's own
def test_dask_workers_train_the_same_bytes(backbone, inbox, set_variable, monkeypatch, tmp_path_factory):
    pytest.importorskip("prefect_dask")
    for name, value in worker_environment().items():
        monkeypatch.setenv(name, value)
    stream = grouped("dasks", backbone, inbox, runner=Runner.DASK)
    assert len(learn(stream)) == 1
    here = sorted(learned_digests(stream).values())
    one = stream.model_copy(update={"tasks": TaskOptions()})
    assert here == in_another_home(one, tmp_path_factory.mktemp("one"), set_variable)
