"""Flows that follow each other wait for no heartbeat, and leave their records."""

import fcntl
import os
import sys
from contextlib import ExitStack
from subprocess import PIPE, Popen
from types import SimpleNamespace

import pytest
from httpx import HTTPError
from prefect import flow, get_client, task
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from infra import orchestration, services
from infra.children import end, known, this_process
from infra.errors import UnreachableError, UnwritableError
from infra.settings import settings


@task
def count(number):
    return number


@flow
def five_tasks():
    return [count(number) for number in range(5)]


@pytest.mark.usefixtures("prefect_api")
def test_flows_run_on_the_session_api_without_heartbeat_and_are_recorded():
    assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() is None
    assert [five_tasks() for _ in range(3)] == [[0, 1, 2, 3, 4]] * 3
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[five_tasks.name])))
    assert [run.state_name for run in runs] == ["Completed"] * 3


def test_the_first_api_of_a_home_starts_while_no_other_does(tmp_path, monkeypatch, set_variable):
    """It makes its tables when it starts."""
    set_variable("HOME", tmp_path)
    monkeypatch.setattr(orchestration, "api_address", lambda: None)
    (tmp_path / "prefect").mkdir()
    alone = []

    def greet():
        with (settings().home / "prefect.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alone.append(True)
            else:
                alone.append(False)

    monkeypatch.setattr(orchestration, "_greet", greet)
    for _ in range(2):
        orchestration.open_api()
    assert alone == [True, False]


SLEEPER = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
STARTER = f"import subprocess; print(subprocess.Popen({SLEEPER}, stdout=-3).pid, flush=True); input()"


def test_a_server_whose_command_was_killed_is_ended_by_the_next(tmp_path, monkeypatch, set_variable):
    set_variable("HOME", tmp_path)
    monkeypatch.setattr(orchestration, "api_address", lambda: None)
    monkeypatch.setattr(orchestration, "_greet", lambda: None)
    (tmp_path / "prefect").mkdir()
    marked = {**os.environ, **orchestration.OWN_SERVER, "PREFECT_HOME": str(tmp_path / "prefect")}
    other = {**marked, "PREFECT_HOME": str(tmp_path / "another")}
    with ExitStack() as stack:
        pids = []
        for environment in (marked, other):
            command = [sys.executable, "-c", STARTER]
            starter = stack.enter_context(Popen(command, stdin=PIPE, stdout=PIPE, env=environment))
            stack.callback(starter.kill)
            pids.append(int(starter.stdout.readline()))
            if environment is marked:
                left = known(pids[0])
                orchestration.open_api()
                assert left.is_alive(), "its command lives"
            starter.kill()
            starter.wait()
        of_another = known(pids[1])
        stack.callback(end, of_another)
        orchestration.open_api()
        assert (left.is_alive(), of_another.is_alive()) == (False, True)


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:4200/api"])
def test_a_full_disk_is_told_where_this_homes_prefect_does_not_answer(tmp_path, monkeypatch, set_variable, address):
    """The remedy named PREFECT_API_URL; and a server that cannot start on a full disk was started anew for ever."""
    set_variable("HOME", tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    if address is not None:
        services.save_services(
            tmp_path, [services.Service("prefect", this_process(), address.removesuffix("/api"), "")]
        )
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=2**40, free=2**20))
    monkeypatch.setattr(orchestration, "_greet", lambda: pytest.fail("a server was started"))
    full = r"Prefect's database in .*/prefect cannot be written: 1\.0 MiB are free; free some space"
    if address is None:
        with pytest.raises(UnwritableError, match=full):
            orchestration.open_api()
    monkeypatch.setenv("PREFECT_API_URL", address or "")
    with pytest.raises(UnwritableError, match=full), orchestration.answering():
        raise HTTPError("Server error '500 Internal Server Error'")
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example.org/api")
    with pytest.raises(UnreachableError, match="check PREFECT_API_URL"), orchestration.answering():
        raise HTTPError("Server error '500 Internal Server Error'")
