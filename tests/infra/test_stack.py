"""`up` serves the embedded state on loopback, finds what runs, and `down` ends only what it started."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from infra import orchestration, seaweed, services, stack
from infra.children import this_process
from infra.errors import StartError
from infra.services import Service

ROOT = Path(stack.__file__).resolve().parent.parent
FLOW = """
from infra.orchestration import prepare_prefect, without_heartbeat
prepare_prefect()
import os, time
from prefect import flow

@flow(log_prints=True)
def hello():
    print("a line for the API")
    return os.environ.get("PREFECT_API_URL", "ephemeral")

with without_heartbeat():
    hello()
    start = time.monotonic()
    print(hello(), time.monotonic() - start)
"""


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


@pytest.fixture
def own_home(tmp_path, set_variable, monkeypatch):
    """A home of the test's own, taken down afterwards whatever happens."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    set_variable("HOME", tmp_path / "home")
    yield tmp_path / "home"
    stack.down()


def run_flow(home):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", FLOW],
        env={**environment, "DECIDUOUS_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split(), done.stderr


def test_nothing_runs_at_first_and_down_is_harmless(own_home):
    assert [(status.name, status.is_running) for status in stack.stack_status()] == [
        ("s3", False),
        ("prefect", False),
        ("mlflow", False),
    ]
    assert stack.down() == []
    assert services.load_services(own_home) == []


@pytest.mark.services
def test_server_that_dies_at_the_start_shows_its_log(own_home, monkeypatch, set_variable):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # leave Prefect out
    own_home.mkdir()
    (own_home / "file").touch()
    set_variable("MLFLOW_TRACKING_URI", f"sqlite:///{own_home}/file/mlflow.db")
    with pytest.raises(StartError, match=r"mlflow at http\S* ended while it started") as caught:
        stack.up()
    assert "FileExistsError" in str(caught.value)
    assert services.load_services(own_home) == []
    assert seaweed.find(own_home) is None


def test_a_dead_service_is_not_found(own_home):
    gone = Service("prefect", seaweed.Child(this_process().pid, 1.0), "http://127.0.0.1:9", "")
    services.save_services(own_home, [gone])
    assert services.find_service(own_home, "prefect") is None


def test_prefect_must_not_be_imported_before_its_environment_is_set(own_home, monkeypatch):
    assert not own_home.exists()
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "prefect", object())
    with pytest.raises(RuntimeError, match="PREFECT_HOME"):
        orchestration.prepare_prefect()


@pytest.mark.services
def test_up_serves_the_embedded_state_and_down_ends_it(own_home):
    own_home.mkdir()
    messages = []
    first = stack.up(messages.append)
    assert [status.name for status in first if status.is_running] == ["s3", "prefect", "mlflow"]
    assert len(messages) == 3
    assert stack.up() == first
    _s3, prefect, mlflow = first

    listening = {
        connection.laddr.ip
        for status in first
        for process in (psutil.Process(status.pid), *psutil.Process(status.pid).children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}
    assert json.loads(get(f"{prefect.url}/ui-settings"))["api_url"] == f"{prefect.url}/api"
    assert b"<html" in get(f"{mlflow.url}/").lower()

    (api, _seconds), errors = run_flow(own_home)
    assert api == f"{prefect.url}/api"
    assert "hello" not in errors  # the console shows warnings only
    request = urllib.request.Request(f"{prefect.url}/api/logs/filter", b"{}", {"Content-Type": "application/json"})
    assert "a line for the API" in [line["message"] for line in json.loads(get(request))]

    assert sorted(stack.down()) == ["mlflow", "prefect", "s3"]
    assert not any(psutil.pid_exists(status.pid) for status in first)
    assert not any(status.is_running for status in stack.stack_status())


@pytest.mark.services
def test_flow_runs_on_an_api_of_its_own_when_nothing_is_up(own_home):
    own_home.mkdir()
    (api, _seconds), errors = run_flow(own_home)
    assert api == "ephemeral"
    assert errors == ""
    assert (own_home / "prefect" / "prefect.db").exists()
