"""Find what an event should have started and did not, and what nobody answered: tickets, requests."""

from datetime import timedelta

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment

from infra import database
from registry import catalog, tickets
from registry.records import Ticket
from registry.tables import now
from tasks.approvals import settle_overdue, start_asking
from tasks.approvals import waiting as waiting_requests
from tasks.deploying import find_deployment
from tasks.events import TICKET_OVERDUE, announce_ticket
from tasks.narration import say
from tasks.policies.forgetting import pause_after
from tasks.retries import step
from tasks.runs import deployed_run, every_page
from tasks.tickets import startable

GRACE = timedelta(seconds=30)
"""An event takes a second or two to start a run; a younger ticket is not missed yet."""


@step("catch-up-{stream}")
def start_missed(stream: str, at_once: str | None = None) -> list[str]:
    """Start `forget` for every open ticket that no unfinished run works; returns their ids.

    One whose runs fail waits longer each time, unless a person asks for it: `at_once` is its id. The key of a run
    counts the runs before it, so two that look at the same time start one run.
    """
    with database.transaction() as session:
        config = catalog.get_stream(session, stream)
        overdue = tickets.overdue(session, now(), stream)
    settle_overdue(config)
    for request in waiting_requests(stream):
        start_asking(request)  # it was asked while no server listened; its key starts no second run
    for ticket in overdue:
        announce_ticket(TICKET_OVERDUE, ticket)
    waiting = [ticket for ticket in startable(stream) if ticket.received_at + GRACE < now()]
    with get_client(sync_client=True) as client:
        missed = _without_run(client, stream, waiting, at_once)
    for ticket_id, before in missed.items():
        say(f"ticket {ticket_id} is open and no run works it: starting forget")
        key = f"catch-up:{ticket_id}:{before}"
        run_deployment(f"forget/{stream}", parameters={"ticket_id": ticket_id}, timeout=0, idempotency_key=key)
    return sorted(missed)


def catch_up_when_deployed(stream: str) -> None:
    """At the start of every scheduled run; a person who calls the flow works tickets by hand."""
    if deployed_run() is not None:
        start_missed(stream)


def _without_run(
    client: SyncPrefectClient, stream: str, waiting: list[Ticket], at_once: str | None = None
) -> dict[str, int]:
    """Ticket id -> how many runs it had, for tickets without an unfinished one whose pause after a failure is over."""
    if not waiting or find_deployment(client, f"forget/{stream}") is None:
        return {}
    of_flow = FlowFilter(name=FlowFilterName(any_=["forget"]))
    of_stream = DeploymentFilter(name=DeploymentFilterName(any_=[stream]))
    order = FlowRunSort.EXPECTED_START_TIME_ASC
    runs = every_page(  # a count of some of them would be the key of a run that is over
        lambda offset: client.read_flow_runs(
            flow_filter=of_flow, deployment_filter=of_stream, sort=order, offset=offset
        )
    )
    answer: dict[str, int] = {}
    for ticket in waiting:
        own = [run for run in runs if run.parameters.get("ticket_id") == ticket.ticket_id]
        if any(run.state is not None and not run.state.is_final() for run in own):
            continue
        if ticket.ticket_id == at_once or _is_due(own):
            answer[ticket.ticket_id] = len(own)
    return answer


def _is_due(runs: list[FlowRun]) -> bool:
    failed = [run.state.timestamp for run in runs if run.state is not None and not run.state.is_completed()]
    return not failed or max(failed) + pause_after(len(failed)) <= now()
