"""`deciduous deploy` on a real Prefect server: complete, idempotent, told beforehand, taken back."""

import hashlib
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import yaml
from prefect import get_client

from flows import deployments
from infra.errors import HeldError
from infra.workers import ROOT, PoolType, job_template
from registry.errors import StateError, StreamFileError
from registry.sections import Scoring
from registry.stream import Stream
from tasks import deploying, exclusion
from tasks.deploying import Change, deployment_id
from tests.flows.conftest import make_stream
from tests.flows.server import runs_of, until
from tests.flows.test_cli import call


def stream_called(name: str, folder, **changes) -> Stream:
    return make_stream(name, folder, folder, owner="Ann", docs="https://example.org/mail", **changes)


def actions(changes) -> set[str]:
    return {change.action for change in changes}


def test_the_gpu_pool_asks_for_gpus():
    docker, kubernetes = (job_template(kind, "gpu")["variables"]["properties"] for kind in list(PoolType)[1:])
    assert docker["container_create_kwargs"]["default"]["device_requests"][0]["Capabilities"] == [["gpu"]]
    assert kubernetes["gpus"]["default"] == 1
    assert job_template(PoolType.KUBERNETES, "cpu")["variables"]["properties"]["gpus"]["default"] == 0


@pytest.mark.parametrize("kind", PoolType)
def test_every_variable_of_a_template_is_declared(kind):
    template = job_template(kind, "gpu")
    used = set(re.findall(r"{{ (\w+) }}", str(template["job_configuration"])))
    assert used <= set(template["variables"]["properties"])


def test_a_relative_source_is_refused(tmp_path):
    stream = stream_called("near", tmp_path).model_copy(update={"source": "inbox/*.csv"})
    for act in (deployments.deploy, lambda stream: deployments.export(stream, tmp_path / "prefect.yaml")):
        with pytest.raises(StateError, match=r"inbox/\*\.csv: a worker runs in another folder"):
            act(stream)


def test_a_file_of_deployments_is_not_written_in_a_dry_run_nor_where_there_is_no_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "s.yaml").write_text(stream_called("written", tmp_path).model_dump_json())
    words = ("deploy", str(tmp_path / "s.yaml"), "--export")
    assert call(capsys, monkeypatch, *words, str(tmp_path / "prefect.yaml"), "--dry-run")[0] == 0
    assert not (tmp_path / "prefect.yaml").exists()
    code, _, errors = call(capsys, monkeypatch, *words, str(tmp_path / "nowhere" / "prefect.yaml"))
    assert (code, "make its folder" in errors) == (1, True)


def test_relative_inputs_of_scheduled_scoring_are_refused(tmp_path):
    scoring = Scoring(source="ask/*.csv", out="S3://inbox/told")
    with pytest.raises(StateError, match=r"ask/\*\.csv, S3://inbox/told: a worker runs in another folder"):
        deployments.deploy(stream_called("near", tmp_path, scoring=scoring))


def test_a_secret_for_a_caller_of_scheduled_scoring_is_refused(tmp_path, set_variable):
    grants = tmp_path / "grants.yaml"
    grants.write_text(f"mail:\n  sha256:{hashlib.sha256(b'planted').hexdigest()}: [sales]\n")
    set_variable("ENTITLEMENTS", grants)
    scoring = Scoring(source="s3://inbox/ask/*", out="s3://inbox/told", caller="planted")
    with pytest.raises(StateError, match="is known by a secret"):
        deployments.deploy(stream_called("mail", tmp_path, scoring=scoring))
    with pytest.raises(StateError, match="is known by a secret"):
        deployments.export(stream_called("mail", tmp_path, scoring=scoring), tmp_path / "prefect.yaml")


def test_the_stream_file_says_what_is_scored_when_and_for_whom(tmp_path):
    scoring = Scoring(source="s3://inbox/ask/*", out="s3://inbox/told", groups=("sales",), schedule="0 6 * * *")
    (wanted,) = (
        each
        for each in deployments.deployments_of(stream_called("mail", tmp_path, scoring=scoring))
        if each.full_name == "predict-batch/mail"
    )
    asked = {"uri": "s3://inbox/ask/*", "out": "s3://inbox/told", "groups": ["sales"], "caller": None}
    assert wanted.parameters == {"stream": "mail", **asked}
    assert (wanted.cron, wanted.concurrency, wanted.pool) == ("0 6 * * *", 1, "cpu")
    with pytest.raises(ValueError, match="five fields"):
        Scoring(source="s3://inbox/ask/*", out="s3://inbox/told", schedule="at six")


def test_two_deploys_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(exclusion, "DEPLOY_SECONDS", 0)
    with exclusion.deploying():
        for work in (lambda: deployments.deploy(stream_called("twice", tmp_path)), lambda: deployments.undeploy("x")):
            with pytest.raises(HeldError, match="deployments is being worked on by deciduous"):
                work()


def test_a_server_with_many_automations_keeps_none_of_a_stream_that_was_taken_away(monkeypatch):
    """It answers 200 at most at once: those of twenty streams."""
    every, removed = [SimpleNamespace(id=n, name=f"s{n // 10}: what {n % 10}") for n in range(450)], []
    server = SimpleNamespace(
        read_deployments=lambda **_: [],
        read_automations=lambda offset=0: every[offset : offset + 200],
        delete_automation=removed.append,
    )
    monkeypatch.setattr(deploying, "get_client", lambda **_: nullcontext(server))
    assert len(deployments.undeploy("s44")) == 10
    assert removed == list(range(440, 450))


@pytest.mark.usefixtures("prefect_api")
def test_a_schedule_that_a_person_paused_stays_so(tmp_path):
    stream = stream_called("resting", tmp_path, schedule="0 * * * *")

    def apply(stream: Stream) -> Change:
        (learn,) = (each for each in deployments.deployments_of(stream) if each.full_name == "learn/resting")
        (change,) = deploying.apply_deployments([learn], dry_run=False)
        return change

    list(deploying.apply_pools(["cpu"], PoolType.PROCESS, dry_run=False))
    assert apply(stream).action == "create"
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name("learn/resting")
        client.update_deployment_schedule(found.id, found.schedules[0].id, active=False)
    assert (apply(stream).action, apply(stream).details) == ("keep", "its schedule is paused")
    changed = apply(stream.model_copy(update={"schedule": "0 6 * * *"}))
    assert (changed.action, "its schedule is paused" in changed.details) == ("change", True)
    with get_client(sync_client=True) as client:
        (schedule,) = client.read_deployment_by_name("learn/resting").schedules
    assert (schedule.schedule.cron, schedule.active) == ("0 6 * * *", False)


@pytest.mark.services
@pytest.mark.usefixtures("server")
def test_deploy_tells_creates_keeps_changes_and_takes_back(tmp_path):
    stream = stream_called("mail", tmp_path, schedule="0 * * * *")
    planned = deployments.deploy(stream, dry_run=True)
    own = [change for change in planned if "pool" not in change.what]  # pools are shared with every other stream
    assert actions(own) == {"create"}
    assert deployments.deploy(stream) == planned
    assert actions(deployments.deploy(stream)) == {"keep"}

    with get_client(sync_client=True) as client:
        learn = client.read_deployment_by_name("learn/mail")
        assert client.read_deployment_by_name("train/mail").work_pool_name == "gpu"
        scored = client.read_deployment_by_name("predict-batch/mail")
        weekly = client.read_deployment_by_name("consolidate/mail").schedules[0].schedule.cron
    assert (learn.entrypoint, learn.work_pool_name) == ("flows.learn.learn", "cpu")
    assert learn.global_concurrency_limit.limit == 1
    assert learn.schedules[0].schedule.cron == "0 * * * *"
    assert set(learn.tags) == {"deciduous", "stream:mail"}
    assert "Owner: Ann" in learn.description
    assert "https://example.org/mail" in learn.description
    assert learn.parameter_openapi_schema["properties"]["stream"]["$ref"] == "#/definitions/Stream"
    assert weekly == "0 3 * * 0"
    assert (scored.entrypoint, scored.schedules) == ("flows.predict.predict_batch", [])
    assert scored.parameters == {"stream": "mail", "groups": []}

    changed = [c for c in deployments.deploy(stream.model_copy(update={"schedule": None})) if c.action == "change"]
    assert {c.what for c in changed} == {
        "deployment learn/mail",
        "deployment train/mail",
        "deployment consolidate/mail",
    }
    assert "schedule: ['0 * * * *'] -> []" in next(c.details for c in changed if "learn" in c.what)

    other = stream_called("post", tmp_path)
    deployments.deploy(other)
    gone = deployments.undeploy("mail")
    assert len(gone) == sum(change.what.startswith(("deployment", "automation")) for change in planned)
    assert deployments.undeploy("mail") == []
    assert actions(deployments.deploy(other)) == {"keep"}


@pytest.mark.services
@pytest.mark.usefixtures("server", "ready")
def test_the_shell_tells_what_a_deploy_would_do_and_does_nothing(capsys, monkeypatch, tmp_path):
    file = tmp_path / "dry.yaml"

    def told(stream: Stream, *options: str) -> str:
        file.write_text(yaml.safe_dump(stream.model_dump(mode="json")))
        code, out, errors = call(capsys, monkeypatch, "deploy", str(file), *options)
        assert code == 0, errors
        return out

    stream = stream_called("dry", tmp_path, schedule="0 * * * *")
    planned = json.loads(told(stream, "--dry-run", "--json"))
    assert {row["action"] for row in planned if row["what"] == "deployment learn/dry"} == {"create"}
    assert deployment_id("learn/dry") is None
    assert json.loads(told(stream, "--json")) == planned

    other = stream.model_copy(update={"schedule": None})
    (learn,) = [row for row in json.loads(told(other, "--dry-run", "--json")) if row["what"] == "deployment learn/dry"]
    assert learn["action"] == "change"
    assert "schedule: ['0 * * * *'] -> []" in learn["details"]
    shown = re.sub(r"[\s│]", "", told(other, "--dry-run"))
    assert "schedule:['0****']->[]" in shown, "a person sees the same, in a column as wide as the terminal leaves it"
    assert actions(deployments.deploy(stream)) == {"keep"}, "the server has the schedule still"


@pytest.mark.services
@pytest.mark.usefixtures("server")
def test_a_schedule_makes_runs(tmp_path):
    """Not a matter of course: with SQLAlchemy 2.1 the server looks healthy and schedules nothing."""
    deployments.deploy(stream_called("hourly", tmp_path, schedule="*/5 * * * *"))
    planned = until(lambda: [run for run in runs_of("learn") if run.parameters["stream"]["name"] == "hourly"])
    assert planned[0].state_name == "Scheduled"
    assert planned[0].tags
    with pytest.raises(StreamFileError, match="no cron expression"):
        deployments.deploy(stream_called("hourly", tmp_path, schedule="99 * * * *"))


@pytest.mark.services
def test_the_exported_file_deploys_the_same(server, tmp_path):
    stream = stream_called("exported", tmp_path, schedule="0 4 * * *")
    file = tmp_path / "prefect.yaml"
    deployments.deploy(stream_called("pools", tmp_path))
    deployments.export(stream, file)
    assert {each["name"] for each in yaml.safe_load(file.read_text())["deployments"]} == {"exported"}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    changed = [c for c in deployments.deploy(stream) if c.what.startswith("deployment") and c.action != "keep"]
    assert changed == [], f"{server}: {changed}"
