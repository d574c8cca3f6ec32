"""Ask a person at a gate: a suspended run with a form on a server, `deciduous approve` anywhere. The answer is kept."""

import os
from datetime import timedelta
from hashlib import sha256

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.flow_runs import resume_flow_run, suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from infra import database
from registry import approvals, catalog
from registry.errors import StateError
from registry.records import Gate, Request, Verdict
from registry.sections import OnTimeout
from registry.stream import Stream
from registry.tables import now
from tasks.deploying import is_deployed
from tasks.events import GATE_REFUSED, announce
from tasks.narration import say
from tasks.retries import step
from tasks.runs import deployed_run, send_heartbeats


class Answer(RunInput):
    """The form that the Prefect UI shows."""

    approver: str = Field(pattern=r"\S", description="your name; it is recorded")
    approved: bool = Field(False, description="let it pass")
    note: str = Field("", description="why; it is recorded")


def word_on(stream: Stream, gate: Gate, what: str, reason: str) -> Request:
    """What a person said of this; asks where nobody was asked yet."""
    request_id = f"{gate.value}:{what}"
    due = now() + timedelta(hours=stream.gates.approval.hours)
    with database.transaction() as session:
        known = approvals.find(session, request_id)
        request = approvals.ask(session, Request(request_id, stream.name, gate, what, reason, due))
    if known is None:
        say(f"  {gate.value} of {what} waits for a person: deciduous approve {request_id} --by NAME")
        start_asking(request)
    return request


def with_word(stream: Stream, gate: Gate, what: str, verdict: Verdict, dry_run: bool = False) -> Verdict:
    """The verdict that a person's answer makes of the gate's own; a refusal for now where nobody has answered yet.

    A dry run asks nobody."""
    request = _word_given(gate, what) if dry_run else word_on(stream, gate, what, verdict.reason)
    if request is None or request.approved is None:
        return Verdict(False, f"waits for a person (gates.approval.{gate.value}); {verdict.reason}")
    word = "approved" if request.approved else "refused"
    return Verdict(request.approved, f"{word} by {request.approver}; {verdict.reason}")


def _word_given(gate: Gate, what: str) -> Request | None:
    with database.transaction() as session:
        return approvals.find(session, f"{gate.value}:{what}")


def start_asking(request: Request, attempt: str = "") -> None:
    """A run of its own waits for the answer, so that the flow that asks need not."""
    if is_deployed("approve", request.stream):
        # by when: who asks anew wants a run anew
        parameters, key = {"request_id": request.request_id}, f"{request.request_id}:{request.due_at}{attempt}"
        # a subflow of the flow that asks could not be suspended
        run_deployment(
            f"approve/{request.stream}", parameters=parameters, timeout=0, idempotency_key=key, as_subflow=False
        )


@step("read-{request_id}")
def read_request(request_id: str) -> Request:
    with database.transaction() as session:
        return approvals.get(session, request_id)


@step("record-{request_id}")
def record_answer(request_id: str, approved: bool, approver: str, note: str) -> Request:
    """Raises StateError without a name, or where the other answer was given before."""
    with database.transaction() as session:
        request = approvals.answer(session, request_id, approved, approver, note)
    if not approved:
        announce(GATE_REFUSED, request.stream, "gate", request_id, gate=request.gate, what=request.what, reason=note)
    return request


def wait_for_answer(request: Request) -> Answer:
    """Suspend this run, with a form, until a person resumes it or the time is over. No process waits."""
    if deployed_run() is None:
        raise StateError(
            f"nobody has answered {request.request_id} yet: deciduous approve {request.request_id} --by NAME"
        )
    form = Answer.with_initial_data(description=f"**{request.gate.value} of {request.what}**\n\n{request.reason}")
    left = max(1.0, (request.due_at - now()).total_seconds())
    # the run asks again under the same key when it resumes; Prefect takes letters, digits and dashes
    key = sha256(request.request_id.encode()).hexdigest()[:16]
    send_heartbeats()
    answered: Answer = suspend_flow_run(wait_for_input=form, timeout=int(left), key=key)
    return answered


def resume_waiting(request_id: str, approved: bool, approver: str, note: str) -> bool:
    """Hand the answer to the suspended run that waits for it; False where none does."""
    if not os.environ.get("PREFECT_API_URL"):
        return False
    wanted = FlowRunFilter(
        name=FlowRunFilterName(any_=[request_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])),
    )
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=wanted, limit=1)
    for run in runs:
        answer = Answer(approver=approver, approved=approved, note=note)
        resume_flow_run(run.id, run_input=answer.model_dump())
    return bool(runs)


def waiting(stream: str | None) -> list[Request]:
    with database.transaction() as session:
        names = catalog.stream_names(session) if stream is None else [stream]
        return [request for name in names for request in approvals.requests(session, name, waiting=True)]


def settle_overdue(stream: Stream) -> list[str]:
    """Silence becomes the answer that the stream's policy names; what it lets pass is started."""
    with database.transaction() as session:
        late = [r for r in approvals.requests(session, stream.name, waiting=True) if r.due_at < now()]
    approved = stream.gates.approval.on_timeout == OnTimeout.APPROVE
    late = [request for request in late if approved or request.gate != Gate.ERASURE]  # silence denies nobody's right
    for request in late:
        answered = record_answer.fn(request.request_id, approved, "time-out", "nobody answered in time")
        if approved:
            start_asking(answered, ":time-out")
    return [request.request_id for request in late]
