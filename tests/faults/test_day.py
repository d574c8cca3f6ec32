"""A day of schedules in minutes: batches, an object unreadable for a while, two tickets, one worker all along."""

import re
import uuid
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import IntervalSchedule

from flows.deployments import deploy, undeploy
from infra import database
from registry import catalog
from registry.records import BatchState
from registry.sections import TaskOptions
from tasks import queries, tickets
from tasks.deploying import deployment_id
from tasks.garbage import clean_up
from tests.flows.conftest import backbone, deliver, inbox, make_stream, prefect_address, ready, server
from tests.flows.server import until, worker

__all__ = ["backbone", "inbox", "prefect_address", "ready", "server"]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800), pytest.mark.usefixtures("ready", "server")]
TICK = timedelta(seconds=20)
"""Stands for three hours."""
LONG = 300
ARRIVALS, BROKEN, MENDED = 8, 1, 3
TICKETS = {4: "person-4", 6: "person-6"}
SETTLED = 3
"""Arrivals after which the worker has opened what it keeps open."""
FLUCTUATION = 3
"""Threads or files; a leak of one a run would be more."""
ENDED = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]


def hasten(deployment) -> None:
    """In place of its cron, so that the server's own scheduler makes the runs."""
    with get_client(sync_client=True) as client:
        for each in client.read_deployment_schedules(deployment):
            client.delete_deployment_schedule(deployment, each.id)
        client.create_deployment_schedules(deployment, [(IntervalSchedule(interval=TICK), True)])


def ended(deployment) -> list[FlowRun]:
    of_it = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    over = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=ENDED)))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=over, deployment_filter=of_it)


def done(stream: str) -> list[str]:
    with database.transaction() as session:
        return [batch.name for batch in catalog.batches(session, stream, BatchState.DONE)]


def kept(process: psutil.Process) -> tuple[int, int, int]:
    """Threads, open files, and bytes of memory."""
    return process.num_threads(), process.num_fds(), process.memory_info().rss


def test_a_day_of_schedules_loses_nothing_and_leaves_nothing_behind(backbone, inbox, tmp_path_factory, ends):
    stream = make_stream(
        f"day-{uuid.uuid4().hex[:6]}", backbone, inbox, schedule="0 */3 * * *", tasks=TaskOptions(pool=None)
    )
    scratch, log = tmp_path_factory.mktemp("scratch"), inbox / "worker.log"
    deploy(stream)
    learn = deployment_id(f"learn/{stream.name}")
    opened, settled = [], (0, 0, 0)
    with worker("cpu", log, TMPDIR=str(scratch)) as child:
        hasten(learn)
        for number in range(ARRIVALS):
            deliver(inbox, f"{number:02}", ["red", "blue"] if number % 2 else ["green", "gold"], rows=80)
            if number == BROKEN:
                (inbox / "late.jsonl").write_bytes(b"\x00\xff not a batch")
            if number == MENDED:
                deliver(inbox, "late", ["red", "blue"], rows=80)
            if number in TICKETS:
                targets = tickets.resolve_targets(stream.name, [TICKETS[number]], [])
                opened.append(tickets.open_ticket(stream.name, targets, "test").ticket_id)
            expected = {f"{n:02}" for n in range(number + 1)} | ({"late"} if number >= MENDED else set())
            until(lambda expected=expected: {Path(name).stem for name in done(stream.name)} == expected, LONG)
            until(lambda number=number: len(ended(learn)) > number, LONG)
            if number == SETTLED:
                settled = kept(psutil.Process(child.pid))
        until(lambda: queries.status(stream.name)[0]["open_tickets"] == [], LONG)
        at_the_end, runs = kept(psutil.Process(child.pid)), ended(learn)
        undeploy(stream.name)
    failures = [run for run in runs if run.state_type != StateType.COMPLETED]
    assert len(runs) > len(failures) > 0
    for run in failures:
        assert re.search(r"late\.jsonl|a deletion ticket names", run.state.message), log.read_text()[-3000:]
    names = done(stream.name)
    assert len(names) == len(set(names)) == ARRIVALS + 1
    (found,) = queries.status(stream.name)
    assert found["unfinished"] == []
    garbage = clean_up(stream.name, dry_run=True)
    assert [garbage[each] for each in ("dead_blobs", "unfinished_uploads", "orphan_runs")] == [0, 0, 0]
    assert len(list(scratch.iterdir())) < len(runs), "folders of the worker's own, which was killed, none of each run"
    assert all(now <= before + FLUCTUATION for now, before in zip(at_the_end[:2], settled[:2], strict=True))
    assert at_the_end[2] < 1.2 * settled[2]
    ends(
        f"a day of schedules, {TICK.seconds} s for three hours, one worker",
        f"{len(runs)} runs, {ARRIVALS} batches, an object unreadable for a while, {len(opened)} tickets",
        f"{len(failures)} runs failed for that object or a ticket; each batch was learned once, tickets are complete",
        "none: nothing waits, nothing is dead in the store, no folder a run; no more threads or files than before",
    )
