"""A gate asks a person: from the shell, in a form on the server; silence is what the policy says."""

import pytest
from prefect import get_client
from prefect.deployments import run_deployment
from prefect.flow_runs import resume_flow_run

from flows import actions
from flows.consolidate import consolidate
from flows.deployments import deploy
from flows.learn import learn
from infra import database
from registry import adapters, approvals
from registry.errors import StateError
from registry.records import AdapterState, TicketState
from registry.stream import Approvals, Gates
from tasks import queries, tickets
from tasks.approvals import settle_overdue
from tests.flows.conftest import deliver, make_stream
from tests.flows.server import runs_of, until, worker

pytestmark = pytest.mark.usefixtures("ready")
LOOSE = {"accuracy_drop": 0.5, "forgetting": 0.5, "merge_drop": 0.5}


def asking(name, backbone, inbox, **approval):
    return make_stream(name, backbone, inbox, gates=Gates(**LOOSE, approval=Approvals(**approval)))


def status(stream) -> dict:
    return queries.status(stream.name)[0]


def aliases(stream) -> list[tuple]:
    return [(row["alias"], row["version"], row["by"]) for row in queries.listing("aliases", stream.name)]


def test_a_version_waits_as_challenger_until_the_shell_says_yes(backbone, inbox):
    stream = asking("asks-shell", backbone, inbox, promotion="always")
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    assert (status(stream)["champion"], status(stream)["challenger"]) == (None, 1)
    assert [r.request_id for r in actions.waiting_requests(stream.name)] == ["promotion:asks-shell/1"]
    with pytest.raises(StateError, match="needs the approver's name"):
        actions.answer("promotion:asks-shell/1", True, " ", "")
    actions.answer("promotion:asks-shell/1", True, "Ann", "seen")
    assert (status(stream)["champion"], status(stream)["challenger"]) == (1, None)
    assert ("champion", 1, "Ann") in aliases(stream)


def test_a_refused_merge_is_not_kept_and_an_approved_one_is(backbone, inbox):
    stream = asking("asks-merge", backbone, inbox, merge="always")
    for name, topics in (("01", ["red", "blue"]), ("02", ["green", "gold"])):
        deliver(inbox, name, topics, rows=120)
    learn(stream)
    with database.transaction() as session:
        pair = [a.adapter_id for a in adapters.adapters(session, stream.name)]
        for adapter_id in pair:
            adapters.move_adapter(session, adapter_id, AdapterState.SERVING, "for this test")
    outcome = consolidate(stream, (pair[0], pair[1]))
    assert not outcome.accepted
    assert "waits for a person" in outcome.reason
    actions.answer(f"merge:{'+'.join(pair)}", True, "Ann", "")
    states = [row["state"] for row in queries.listing("adapters", stream.name)]
    assert states.count(AdapterState.MERGED) + states.count(AdapterState.RETIRED) == 2


def test_an_erasure_waits_and_silence_denies_nobody(backbone, inbox):
    stream = asking("asks-erasure", backbone, inbox, erasure="always", hours=1e-9)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    ticket = tickets.open_ticket(stream.name, tickets.resolve_targets(stream.name, ["person-1"], []), "test")
    assert ticket.state == TicketState.RECEIVED
    assert settle_overdue(stream) == []
    actions.answer(f"erasure:{ticket.ticket_id}", True, "Ann", "")
    assert tickets.read_ticket(ticket.ticket_id).state == TicketState.APPROVED


def test_silence_refuses_a_promotion(backbone, inbox):
    stream = asking("asks-nobody", backbone, inbox, promotion="always", hours=1e-9)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    assert settle_overdue(stream) == ["promotion:asks-nobody/1"]
    with database.transaction() as session:
        request = approvals.get(session, "promotion:asks-nobody/1")
    assert (request.approved, request.approver) == (False, "time-out")
    assert status(stream)["champion"] is None


@pytest.mark.services
@pytest.mark.timeout(2400)
@pytest.mark.usefixtures("server")
def test_the_form_of_a_suspended_run_moves_the_champion_in_the_approvers_name(backbone, inbox, tmp_path_factory):
    stream = asking("asks-form", backbone, inbox, promotion="always")
    deliver(inbox, "01", ["red", "blue"])
    deploy(stream)
    run_deployment("learn/asks-form", timeout=0)
    with worker("cpu", tmp_path_factory.mktemp("worker") / "log"):
        request = "promotion:asks-form/1"
        waiting = until(lambda: next((r for r in runs_of("approve") if r.state_name == "Suspended"), None), 900)
        assert waiting.parameters["request_id"] == request
        with get_client(sync_client=True) as client:
            keys = client.filter_flow_run_input(waiting.id, key_prefix="", limit=10, exclude_keys=set())
        assert any("approver" in str(key.value) for key in keys), "the form's schema is there for the UI"
        with pytest.raises(Exception, match="approver"):
            resume_flow_run(waiting.id, run_input={"approved": True})
        resume_flow_run(waiting.id, run_input={"approver": "Ann", "approved": True, "note": "seen"})
        done = until(lambda: next((r for r in runs_of("approve") if r.state_name == "Completed"), None), 900)
    assert done.name == f"{request}: approved by Ann"
    assert ("champion", 1, "Ann") in aliases(stream)
