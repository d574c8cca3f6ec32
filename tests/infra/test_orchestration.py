"""Flows that follow each other wait for no heartbeat, and leave their records."""

import pytest
from prefect import flow, get_client, task
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY


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
