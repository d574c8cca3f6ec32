"""Ask a person at a gate, record who said what, and carry it out."""

from prefect import flow

from flows.consolidate import consolidate
from registry.records import Gate, Request
from tasks.approvals import read_request, record_answer, wait_for_answer
from tasks.opening import stream_of
from tasks.promotion import promote_approved
from tasks.runs import name_run
from tasks.tickets import approve_ticket, deny_ticket


@flow(name="approve", flow_run_name="{request_id}")
def approve(request_id: str) -> Request:
    """Return the answered request. On a server the run suspends with a form; from a shell it finds the answer given."""
    request = read_request(request_id)
    if request.approved is None:
        answer = wait_for_answer(request)
        request = record_answer(request_id, answer.approved, answer.approver, answer.note)
    name_run(f"{request_id}: {'approved' if request.approved else 'refused'} by {request.approver}")
    if request.gate == Gate.PROMOTION and request.approved:
        promote_approved(request)
    elif request.gate == Gate.ERASURE:
        (approve_ticket if request.approved else deny_ticket)(request.what, request.approver, request.note)
    elif request.gate == Gate.MERGE and request.approved:
        first, second = request.what.split("+")
        consolidate(stream_of(request.stream), (first, second))
    return request
