"""Automations of a stream: which event starts, resumes or reports what."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.automations import ChangeFlowRunState, DoNothing, EventTrigger, Posture, RunDeployment, SendNotification
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes
from prefect.events.schemas.automations import AutomationCore, TriggerTypes
from prefect.exceptions import ObjectNotFound

from infra.settings import settings
from registry.errors import StateError
from registry.stream import Stream
from tasks.events import BATCH_HELD, GATE_REFUSED, TICKET_OPENED, TICKET_OVERDUE

ONCE = timedelta(days=1)
"""A ticket that is announced again within this time starts no second run."""
SILENCE = timedelta(seconds=90)
"""Three missed heartbeats: the run's machine is gone."""
START = timedelta(hours=1)
"""For images and GPU nodes to arrive. A worker that dies before its run begins leaves it pending, with its slot."""
NOBODY = UUID(int=0)
HEARTBEAT, RUNNING, PENDING = (f"prefect.flow-run.{what}" for what in ("heartbeat", "Running", "Pending"))
ENDED = tuple(
    f"prefect.flow-run.{state}"
    for state in ("Completed", "Failed", "Crashed", "Cancelled", "Paused", "Suspended", "Scheduled", "AwaitingRetry")
)


def prefix_of(stream: str) -> str:
    return f"{stream}: "


def automations_of(stream: Stream, deployments: Mapping[str, UUID | None]) -> list[AutomationCore]:
    """Triggers first, then one notification each, off until DECIDUOUS_NOTIFY names a block."""
    ids = {flow: found or NOBODY for flow, found in deployments.items()}
    ours = {"prefect.resource.role": "deployment", "prefect.resource.id": _resources(ids)}
    start, name = "a ticket starts forget", stream.name
    return [
        _automation(name, start, _event(TICKET_OPENED, name, ONCE), _run(ids["forget"], ticket_id="payload.ticket_id")),
        _automation(name, "a lost start is caught up", _failed(name, start), _run(ids["catch-up"])),
        _automation(
            name,
            "silence is a crash",
            # since it began or last gave a sign: a machine may vanish before its first heartbeat has arrived
            _missing({RUNNING, HEARTBEAT}, {HEARTBEAT, *ENDED}, ours, SILENCE),
            _set(StateType.CRASHED, None, "its heartbeat stopped"),
        ),
        _automation(
            name,
            "a run that never begins is a crash",
            _missing({PENDING}, {RUNNING, *ENDED}, ours, START),
            _set(StateType.CRASHED, None, "its worker was lost before it began"),
        ),
        _automation(
            name, "a crashed run resumes", _crashed(ours), _set(StateType.SCHEDULED, "AwaitingRetry", "worker was lost")
        ),
        *_notifications(stream, _crashed(ours)),
    ]


def _notifications(stream: Stream, crashed: EventTrigger) -> list[AutomationCore]:
    name = stream.name
    templates = {
        "notify of an overdue ticket": (
            _event(TICKET_OVERDUE, name, ONCE),
            "Deletion ticket {{ event.payload.ticket_id }} of stream {{ event.payload.stream }} was due "
            "{{ event.payload.due_at }} and is {{ event.payload.state }}. See: deciduous describe "
            "{{ event.payload.ticket_id }}",
        ),
        "notify of a held batch": (
            _event(BATCH_HELD, name),
            "Batch {{ event.payload.batch }} of stream {{ event.payload.stream }} is held: {{ event.payload.reason }}",
        ),
        "notify of a refused gate": (
            _event(GATE_REFUSED, name),
            "Gate {{ event.payload.gate }} of stream {{ event.payload.stream }} refused {{ event.payload.what }}: "
            "{{ event.payload.reason }}",
        ),
        "notify of a lost worker": (
            EventTrigger(
                expect={"prefect.work-pool.not-ready"},
                match={"prefect.resource.name": [stream.tasks.pool or "cpu", "cpu"]},
                posture=Posture.Reactive,
                threshold=1,
            ),
            "Work pool {{ event.resource.name }} has no live worker; start one: deciduous worker "
            "{{ event.resource.name }}",
        ),
        # a pool with other workers stays ready when one of them dies: only the dead one's run tells
        "notify of a crashed run": (
            crashed,
            "Run {{ event.resource.name }} crashed ({{ event.payload.validated_state.message }}) and is scheduled "
            "again. See: prefect flow-run inspect {{ flow_run.id }}",
        ),
    }
    block = notification_block()
    return [
        _automation(
            name,
            what,
            trigger,
            DoNothing() if block is None else SendNotification(block_document_id=block, subject=what, body=body),
            body,
            enabled=block is not None,
        )
        for what, (trigger, body) in templates.items()
    ]


def notification_block() -> UUID | None:
    """The Prefect block that DECIDUOUS_NOTIFY names as TYPE/NAME; None where none is named."""
    named = settings().notify
    if named is None:
        return None
    kind, _, name = named.partition("/")
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(name, kind).id
        except ObjectNotFound:
            raise StateError(f"no Prefect block {named!r} (DECIDUOUS_NOTIFY); `prefect block ls` lists them") from None


def _automation(
    stream: str, what: str, trigger: TriggerTypes, action: ActionTypes, description: str = "", enabled: bool = True
) -> AutomationCore:
    return AutomationCore(
        name=f"{prefix_of(stream)}{what}",
        description=description,
        enabled=enabled,
        trigger=trigger,
        actions=[action],
        tags=["deciduous", f"stream:{stream}"],
    )


def _event(event: str, stream: str, once_in: timedelta = timedelta(0)) -> EventTrigger:
    return EventTrigger(
        expect={event},
        match={"prefect.resource.id": "deciduous.*", "deciduous.stream": stream},
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=once_in,
    )


def _failed(stream: str, automation: str) -> EventTrigger:
    """The other automation could not act: for instance, the server refused a parameter."""
    return EventTrigger(
        expect={"prefect.automation.action.failed"},
        match={
            "prefect.resource.id": "prefect.automation.*",
            "prefect.resource.name": f"{prefix_of(stream)}{automation}",
        },
        posture=Posture.Reactive,
        threshold=1,
    )


def _missing(after: set[str], expected: set[str], ours: Any, within: timedelta) -> EventTrigger:
    """A run of ours that showed one of the first events, and none of the others since."""
    return EventTrigger(
        after=after,
        expect=expected,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=ours,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )


def _crashed(ours: Any) -> EventTrigger:
    return EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=ours,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )


def _resources(ids: Mapping[str, UUID]) -> list[str]:
    return sorted(f"prefect.deployment.{found}" for found in ids.values())


def _run(deployment: UUID, **fields: str) -> RunDeployment:
    """Parameters are rendered to text, which is why only ids are passed."""
    parameters = {name: f"{{{{ event.{path} }}}}" for name, path in fields.items()}
    return RunDeployment(source="selected", deployment_id=deployment, parameters=parameters or None)


def _set(state: StateType, name: str | None, why: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=state, name=name, message=why)
