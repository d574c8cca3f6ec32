"""A worker takes what a deployed stream hands over; one that is killed loses no finished slice and changes no byte."""

import os
import signal
from itertools import pairwise

import psutil
import pytest
from prefect import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.deployments import run_deployment

from flows.deployments import deploy, undeploy
from flows.learn import learn
from infra import database
from infra.orchestration import online_workers
from infra.settings import settings
from infra.workers import PoolType
from registry import adapters, catalog, contents, ownership
from registry.sections import AdapterOptions, Scoring, TaskOptions, WithoutWorker
from registry.tables import now
from tasks import queries
from tasks.deploying import Wanted, apply_automations, apply_deployments, apply_pools, deployment_id
from tasks.opening import open_home
from tasks.training import stages_of
from tasks.triggers import automations_of
from tests.flows.conftest import deliver, make_stream
from tests.flows.server import runs_of, until, worker
from tests.flows.sleeper import sleeper
from tests.flows.test_determinism import learned_digests

pytestmark = [pytest.mark.services, pytest.mark.timeout(2400), pytest.mark.usefixtures("ready", "server")]
LONG = 900
"""Seconds at most for a few interpreter starts on a busy machine."""
SLOW = AdapterOptions(rank=4, last_layers=2, epochs=120, slices=4)


@pytest.fixture
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("workers")


def start(stream) -> None:
    deploy(stream)
    run_deployment(f"learn/{stream.name}", timeout=0)


def run_in(flow: str, stream: str, *states: str):
    """The newest run of the stream's flow when it is in one of these states."""
    mine = [
        run for run in runs_of(flow) if stream in run.name or run.parameters.get("stream", {}).get("name") == stream
    ]
    return mine[-1] if mine and (mine[-1].state_name in states or not states) else None


def rows_trained(run, since) -> set[int]:
    """The sizes that training told of after this moment, every page of the run's log."""
    wanted, logs = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), []
    with get_client(sync_client=True) as client:
        while page := client.read_logs(wanted, limit=200, offset=len(logs)):
            logs += page
    told = [log.message.split(",")[1] for log in logs if log.timestamp > since and "training," in log.message]
    return {int(size.split()[0]) for size in told}


def slice_sizes(stream) -> list[int]:
    """Rows that each slice of the stream's only shard is trained on."""
    with database.transaction() as session:
        (shard,) = catalog.batches(session, stream.name)[0].shards
    return [len(stage.rows) for stage in stages_of(stream, [shard])]


def slots_in_use(stream: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(f"learn/{stream}").global_concurrency_limit.active_slots


def checkpoints_of(adapter_id: str) -> list[str]:
    with database.transaction() as session:
        found = ownership.objects_of(session, [f"adapter:{adapter_id}"])
    return [stored.kind for stored in found if stored.kind.startswith("checkpoint")]


def learned_elsewhere(stream, home, set_variable) -> list[str]:
    """Digests of the artifacts that this process learns in a home of its own."""
    set_variable("HOME", home)
    open_home()
    return sorted(learned_digests(stream).values())


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)


def test_learn_suspends_while_a_gpu_worker_trains_and_the_bytes_are_the_same(
    backbone, inbox, logs, set_variable, tmp_path_factory
):
    stream = make_stream("handed", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"], rows=120)
    deliver(inbox, "02", ["green", "gold"], rows=120)
    start(stream)
    with worker("cpu", logs / "cpu"), worker("gpu", logs / "gpu"):
        done = until(lambda: run_in("learn", "handed", "Completed", "Failed"), LONG)
    assert done.state_name == "Completed", (logs / "cpu").read_text()[-3000:]
    with get_client(sync_client=True) as client:
        states = [state.name for state in client.read_flow_run_states(done.id)]
    assert states.count("Suspended") == 2, "once for each batch that is handed over"
    trained = run_in("train", "handed", "Completed")
    assert trained.parameters["waiting"] == str(done.id)
    (status,) = queries.status("handed")
    assert (status["champion"], status["unfinished"]) == (2, [])
    batches = [run.name for run in runs_of("learn-batch") if run.name.startswith("handed: ")]
    assert batches == ["handed: 01: expand", "handed: 02: expand"], "a resumed run goes on under the batch's own run"

    with database.transaction() as session:
        owners = [a.node for a in adapters.adapters(session, "handed")]
        owners += [s.node for s in contents.done_shards(session, "handed")]
        found = ownership.objects_of(session, owners)
    here = sorted(o.sha256 for o in found if o.kind != "rows" and not o.kind.startswith("checkpoint"))
    assert here == learned_elsewhere(stream, tmp_path_factory.mktemp("elsewhere"), set_variable)


def test_a_worker_killed_hard_is_found_out_and_the_run_resumes_from_the_last_slice(
    backbone, inbox, logs, set_variable, tmp_path_factory
):
    stream = make_stream("killed", backbone, inbox, adapter=SLOW)
    deliver(inbox, "01", ["red", "blue"], rows=160)
    start(stream)
    with worker("cpu", logs / "cpu"):
        with worker("gpu", logs / "gpu") as first:
            until(lambda: checkpoints_of("killed-a1"), LONG)
            until(lambda: run_in("learn", "killed", "Suspended"), LONG)
            assert slots_in_use("killed") == 0, "another learn of the stream could run"
            family = psutil.Process(first.pid).children(recursive=True)
            for process in [psutil.Process(first.pid), *family]:
                kill(process)
            before, killed = checkpoints_of("killed-a1"), now()
        assert run_in("train", "killed", "Running"), "nobody has told the server yet"
        with worker("gpu", logs / "second"):
            trained = until(lambda: run_in("train", "killed", "Completed", "Failed"), LONG)
            done = until(lambda: run_in("learn", "killed", "Completed", "Failed"), LONG)
    assert (trained.state_name, done.state_name) == ("Completed", "Completed")
    assert trained.run_count == 2
    assert 1 <= len(before) < len(checkpoints_of("killed-a1")) == 4
    left = set(slice_sizes(stream)[len(before) :])
    assert rows_trained(trained, killed) == left, "no slice with a checkpoint is trained again, every other is"
    with database.transaction() as session:
        weights = ownership.get_object(session, "adapter:killed-a1", "weights").sha256
    assert weights in learned_elsewhere(stream, tmp_path_factory.mktemp("elsewhere"), set_variable)


def answered(s3, out: str) -> dict[str, list[str]]:
    """Key -> its versions in the bucket: one where it was written once."""
    found: dict[str, list[str]] = {}
    for each in s3.list_object_versions(Bucket=settings().inbox_bucket, Prefix=out).get("Versions", []):
        found.setdefault(each["Key"], []).append(each["VersionId"])
    return found


def test_scheduled_scoring_that_is_killed_goes_on_without_answering_an_object_again(backbone, inbox, logs, s3):
    bucket, objects = settings().inbox_bucket, 12
    scoring = Scoring(source=f"s3://{bucket}/to-score/*.jsonl", out=f"s3://{bucket}/scored", schedule="* * * * *")
    stream = make_stream("scored", backbone, inbox, scoring=scoring)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    asked = (inbox / "01.jsonl").read_bytes()
    for n in range(objects):
        s3.put_object(Bucket=bucket, Key=f"to-score/{n:02}.jsonl", Body=asked)
    deploy(stream)
    with worker("cpu", logs / "first") as first:
        until(lambda: answered(s3, "scored/"), LONG)
        for process in [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]:
            kill(process)
    before = answered(s3, "scored/")
    assert 1 <= len(before) < objects
    with worker("cpu", logs / "second"):
        until(lambda: len(answered(s3, "scored/")) == objects, LONG)
        undeploy("scored")
    after = answered(s3, "scored/")
    assert {key: after[key] for key in before} == before
    assert all(len(versions) == 1 for versions in after.values())


def test_a_run_that_is_killed_before_its_first_heartbeat_is_found_out(logs, tmp_path, told):
    """Nothing told the server that it lived: the automation counts from the state `Running` on. Somebody is told."""
    tags = ("deciduous", "stream:early")
    wanted = Wanted(sleeper, "early", "tests.flows.sleeper.sleeper", "cpu", "", tags, {"folder": str(tmp_path)})
    list(apply_pools(["cpu"], PoolType.PROCESS, dry_run=False))
    list(apply_deployments([wanted], dry_run=False))
    of_stream = make_stream("early", tmp_path, tmp_path)
    ids = dict.fromkeys(("forget", "catch-up", "sleeper"), deployment_id("sleeper/early"))
    list(apply_automations(automations_of(of_stream, ids), dry_run=False))
    run_deployment("sleeper/early", timeout=0)
    with worker("cpu", logs / "first") as first:
        until(lambda: list(tmp_path.iterdir()), LONG)
        for process in [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]:
            kill(process)
    assert runs_of("sleeper")[0].state_name == "Running"
    with worker("cpu", logs / "second"):
        until(lambda: runs_of("sleeper")[0].state_name == "Completed", LONG)
    assert runs_of("sleeper")[0].run_count == 2
    assert [text for text in told if "crashed (its heartbeat stopped) and is scheduled again" in text]
    undeploy("early")


def test_without_a_worker_the_policy_trains_here_or_waits_until_the_deadline(backbone, inbox, logs):
    here = make_stream("local", backbone, inbox, tasks=TaskOptions(pool="idle"))
    waits = make_stream(
        "waits", backbone, inbox, tasks=TaskOptions(pool="idle", without_worker=WithoutWorker.WAIT, wait_minutes=0.05)
    )
    deliver(inbox, "01", ["red", "blue"])
    start(here)
    start(waits)
    with worker("cpu", logs / "cpu"):
        assert until(lambda: run_in("learn", "local", "Completed", "Failed"), LONG).state_name == "Completed"
        late = until(lambda: run_in("learn", "waits", "Failed", "Completed"), LONG)
    assert late.state_name == "Failed"
    assert "never resumed" in late.state.message
    assert queries.status("waits")[0]["unfinished"] == ["01"]
    assert learn(waits) == [queries.listing("batches", "waits")[0]["batch_id"]]


def test_a_worker_that_arrives_before_the_deadline_takes_what_waited_for_it(backbone, inbox, logs):
    options = TaskOptions(pool="late", without_worker=WithoutWorker.WAIT, wait_minutes=60)
    stream = make_stream("patient", backbone, inbox, tasks=options)
    deliver(inbox, "01", ["red", "blue"])
    start(stream)
    with worker("cpu", logs / "cpu"):
        until(lambda: run_in("learn", "patient", "Suspended"), LONG)
        assert online_workers(os.environ["PREFECT_API_URL"], "late") == []
        assert run_in("train", "patient").state_name in ("Scheduled", "Late")
        with worker("late", logs / "late"):
            done = until(lambda: run_in("learn", "patient", "Completed", "Failed"), LONG)
    assert done.state_name == "Completed", (logs / "cpu").read_text()[-3000:]
    assert run_in("train", "patient", "Completed").parameters["waiting"] == str(done.id)
    assert queries.status("patient")[0]["champion"] == 1


def test_a_schedule_fires_and_one_learn_runs_at_a_time(backbone, inbox, logs):
    stream = make_stream("ticking", backbone, inbox, schedule="* * * * *", tasks=TaskOptions(pool=None))
    deliver(inbox, "01", ["red", "blue"])

    def of(*states: str) -> list:
        mine = [run for run in runs_of("learn") if run.name.startswith("ticking") or run.deployment_id == learns]
        return [run for run in mine if run.state_name in states]

    deploy(stream)
    learns = deployment_id("learn/ticking")
    with worker("cpu", logs / "cpu"):
        for _ in range(2):  # beside the one that the clock starts
            run_deployment("learn/ticking", timeout=0)
        assert until(lambda: of("AwaitingConcurrencySlot"), LONG), "deployed with concurrency limit 1"
        assert until(lambda: slots_in_use("ticking") == 1, LONG)
        until(lambda: [run for run in of("Completed") if run.auto_scheduled] and len(of("Completed")) > 2, LONG)
    undeploy("ticking")
    done = sorted(of("Completed"), key=lambda run: run.start_time)
    assert all(first.end_time <= second.start_time for first, second in pairwise(done))
    assert queries.status("ticking")[0]["champion"] == 1
