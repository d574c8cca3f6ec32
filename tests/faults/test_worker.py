"""A run that a worker serves is killed (-9): it is found out, resumed, and ends in the bytes of an undisturbed run."""

import random
import uuid

import pytest
from prefect.deployments import run_deployment

from infra import database
from infra.workers import PoolType
from registry import adapters, contents, ownership
from registry.sections import TaskOptions
from tasks import queries
from tasks.deploying import Wanted, apply_automations, apply_deployments, apply_pools, deployment_id
from tasks.opening import open_home
from tasks.triggers import automations_of
from tests.faults.dying import dying
from tests.flows.conftest import backbone, deliver, inbox, make_stream, prefect_address, ready, server
from tests.flows.server import runs_of, until, worker
from tests.flows.test_determinism import learned_digests

__all__ = ["backbone", "inbox", "prefect_address", "ready", "server"]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2400), pytest.mark.usefixtures("ready", "server")]
LONG = 900
"""Seconds at most for a few interpreter starts on a busy machine."""
KILLS = 3


def run_one(stream, last: int, folder):
    """The stream's run by a worker, once it has ended."""
    folder.mkdir()
    parameters = {"stream": stream.model_dump(mode="json"), "last": last, "folder": str(folder)}
    tags = ("deciduous", f"stream:{stream.name}")
    wanted = Wanted(dying, stream.name, "tests.faults.dying.dying", "cpu", "", tags, parameters)
    list(apply_deployments([wanted], dry_run=False))
    known = deployment_id(wanted.full_name)
    ids = dict.fromkeys(("forget", "catch-up", "dying"), known)
    list(apply_automations(automations_of(stream, ids), dry_run=False))
    run_deployment(wanted.full_name, timeout=0)

    def ended():
        (run,) = [run for run in runs_of("dying") if run.deployment_id == known]
        return run if run.state_name in ("Completed", "Failed") else None

    return until(ended, LONG)


def digests_of(stream) -> dict[str, str]:
    with database.transaction() as session:
        owners = [a.node for a in adapters.adapters(session, stream.name)]
        owners += [s.node for s in contents.done_shards(session, stream.name)]
        found = ownership.objects_of(session, owners)
    # as `learned_digests`; shards are numbered through all streams of a home
    return sorted(o.sha256 for o in found if o.kind != "rows" and not o.kind.startswith("checkpoint"))


def test_a_run_whose_process_is_killed_is_resumed_by_its_worker(
    backbone, inbox, tmp_path, tmp_path_factory, set_variable, ends
):
    def stream_of(number):
        return make_stream(f"dying-{number}-{uuid.uuid4().hex[:6]}", backbone, inbox, tasks=TaskOptions(pool=None))

    deliver(inbox, "01", ["red", "blue"])
    list(apply_pools(["cpu"], PoolType.PROCESS, dry_run=False))
    log, killed = tmp_path / "worker.log", {}
    with worker("cpu", log):
        whole = run_one(stream_of(0), 0, tmp_path / "whole")
        assert whole.state_name == "Completed", log.read_text()[-3000:]
        effects = int((tmp_path / "whole" / "effects").read_text())
        assert effects > 20
        for last in sorted(random.Random(effects).sample(range(1, effects + 1), KILLS)):
            stream = stream_of(last)
            run = run_one(stream, last, tmp_path / str(last))
            # a busy server may take a late heartbeat for silence, and start the run once more
            assert run.state_name == "Completed", log.read_text()[-3000:]
            assert run.run_count >= 2
            (found,) = queries.status(stream.name)
            assert (found["champion"], found["versions"], found["unfinished"]) == (1, 1, [])
            killed[stream.name] = (stream, digests_of(stream))
    for stream, digests in killed.values():
        set_variable("HOME", tmp_path_factory.mktemp("elsewhere"))
        open_home()
        assert digests == sorted(learned_digests(stream).values())
    ends(
        "the process of a run that a worker serves is killed (-9)",
        f"before {KILLS} of its {effects} effects",
        "the worker tells the server, an automation resumes the run, it completes",
        "none: artifacts have the bytes of a run elsewhere; one version serves",
    )
