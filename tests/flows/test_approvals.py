"""A gate asks a person: from the shell, in a form on the server; silence is what the policy says."""

import json
import os
from pathlib import Path

import pytest
from prefect import get_client
from prefect.deployments import run_deployment
from prefect.flow_runs import resume_flow_run

from flows import actions
from flows.consolidate import consolidate
from flows.deployments import deploy
from flows.learn import learn
from infra import database
from infra.orchestration import call_api
from registry import adapters, approvals, versions
from registry.errors import StateError
from registry.records import AdapterState, TicketState
from registry.sections import Approvals, Gates
from registry.versions import CHALLENGER, CHAMPION
from tasks import missed, queries, tickets
from tasks.alias_moves import move_alias
from tasks.approvals import settle_overdue
from tasks.triggers import HEARTBEAT
from tests.flows import pages
from tests.flows.conftest import deliver, make_stream, mislead
from tests.flows.server import runs_of, until, worker
from tests.flows.test_cli import call

pytestmark = pytest.mark.usefixtures("ready")
SUSPENDED = "prefect.flow-run.Suspended"
LOOSE = {"accuracy_drop": 0.5, "forgetting": 0.5, "merge_drop": 0.5}


def asking(name, backbone, inbox, **approval):
    return make_stream(name, backbone, inbox, gates=Gates(**LOOSE, approval=Approvals(**approval)))


def status(stream) -> dict:
    return queries.status(stream.name)[0]


def aliases(stream) -> list[tuple]:
    return [(row["alias"], row["version"], row["by"]) for row in queries.listing("aliases", stream.name)]


def serving_pair(stream) -> tuple[str, str]:
    """Both adapters of the stream, made to serve whatever they are worth."""
    with database.transaction() as session:
        first, second = (a.adapter_id for a in adapters.adapters(session, stream.name))
        for adapter_id in (first, second):
            adapters.move_adapter(session, adapter_id, AdapterState.SERVING, "for this test")
    return first, second


def test_a_version_waits_as_challenger_until_the_shell_says_yes(capsys, monkeypatch, backbone, inbox):
    stream = asking("asks-shell", backbone, inbox, promotion="always")
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    assert (status(stream)["champion"], status(stream)["challenger"]) == (None, 1)
    assert [r.request_id for r in actions.waiting_requests(stream.name)] == ["promotion:asks-shell/1"]
    approve = ("approve", "promotion:asks-shell/1")
    code, _, errors = call(capsys, monkeypatch, *approve, "--by", " ")
    assert (code, "needs the approver's name" in errors) == (1, True)
    assert call(capsys, monkeypatch, *approve)[0] == 2, "without --by it is not a command"
    assert (status(stream)["champion"], status(stream)["challenger"]) == (None, 1)
    code, out, _ = call(capsys, monkeypatch, *approve, "--by", "Ann", "--note", "seen")
    assert (code, out.count("promotion:asks-shell/1 approved by Ann")) == (0, 1)
    assert (status(stream)["champion"], status(stream)["challenger"]) == (1, None)
    assert ("champion", 1, "Ann") in aliases(stream)
    with database.transaction() as session:
        assert approvals.get(session, "promotion:asks-shell/1").note == "seen"
    assert "no requests" in call(capsys, monkeypatch, "requests", stream.name)[1]


def test_the_shell_may_refuse(capsys, monkeypatch, backbone, inbox):
    stream = asking("asks-refusal", backbone, inbox, promotion="always")
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    code, out, _ = call(capsys, monkeypatch, "approve", "promotion:asks-refusal/1", "--by", "Ann", "--refuse")
    assert (code, "refused by Ann" in out) == (0, True)
    assert (status(stream)["champion"], status(stream)["challenger"]) == (None, 1)


def test_on_regression_a_version_waits_only_where_it_fails_its_gates(backbone, inbox):
    stream = asking("asks-worse", backbone, inbox, promotion="on-regression")
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    assert (status(stream)["champion"], actions.waiting_requests(stream.name)) == (1, [])
    mislead(inbox, "02", ["red", "blue"], rows=200)
    learn(stream)
    (asked,) = actions.waiting_requests(stream.name)
    assert (asked.request_id, status(stream)["champion"]) == ("promotion:asks-worse/2", 1)
    assert "accuracy falls beyond chance" in asked.reason
    actions.answer(asked.request_id, True, "Ann", "")
    assert status(stream)["champion"] == 2


def test_a_challenger_waits_no_more_once_a_later_version_is_champion(backbone, inbox):
    stream = make_stream("overtaken", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    move_alias(stream.name, CHALLENGER, 1, "Ann", "waits")
    deliver(inbox, "02", ["red", "blue"])
    learn(stream)
    assert (status(stream)["champion"], status(stream)["challenger"]) == (2, None)


def test_nobody_is_asked_about_a_version_that_is_overtaken_withdrawn_or_promoted_by_hand(backbone, inbox):
    stream = asking("asks-late", backbone, inbox, promotion="always")
    for name in ("01", "02"):
        deliver(inbox, name, ["red", "blue"])
        learn(stream)
    assert [r.request_id for r in actions.waiting_requests(stream.name)] == ["promotion:asks-late/2"]
    with pytest.raises(StateError, match="refused by deciduous already: version 2 is challenger"):
        actions.answer("promotion:asks-late/1", True, "Ann", "")
    move_alias(stream.name, CHAMPION, 2, "Bob", "urgent")
    with database.transaction() as session:
        asked = approvals.get(session, "promotion:asks-late/2")
    assert (asked.approved, asked.approver, asked.note) == (True, "Bob", "urgent")
    deliver(inbox, "03", ["red", "blue"])
    learn(stream)
    ticket = tickets.open_ticket(stream.name, tickets.resolve_targets(stream.name, ["person-1"], []), "test")
    assert actions.waiting_requests(stream.name) == []
    with pytest.raises(StateError, match=f"already: ticket {ticket.ticket_id}"):
        actions.answer("promotion:asks-late/3", True, "Ann", "")


def test_a_ticket_falls_back_to_what_served_and_not_to_what_a_person_refused(backbone, inbox):
    stream = asking("asks-back", backbone, inbox, promotion="always")
    for name, word in (("01", True), ("02", False), ("03", True)):
        rows = [{**row, "who": f"{name}-{row['who']}"} for row in deliver(inbox, name, ["red", "blue"])]
        (inbox / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        learn(stream)
        actions.answer(f"promotion:asks-back/{int(name)}", word, "Ann", "")
    assert status(stream)["champion"] == 3
    tickets.open_ticket(stream.name, tickets.resolve_targets(stream.name, ["03-person-1"], []), "test")
    assert status(stream)["champion"] == 1
    with database.transaction() as session:
        assert versions.alias_of(session, stream.name, versions.PREVIOUS) is None, "it is the champion itself"


def test_on_regression_nobody_is_asked_about_a_merge_that_costs_no_accuracy(backbone, inbox):
    stream = asking("asks-lossy", backbone, inbox, merge="on-regression")
    for name, topics in (("01", ["red", "blue"]), ("02", ["green", "gold"])):
        deliver(inbox, name, topics, rows=120)
    learn(stream)
    outcome = consolidate(stream, serving_pair(stream))
    assert outcome.accuracy_after >= outcome.accuracy_before
    assert outcome.accepted
    assert actions.waiting_requests(stream.name) == []


def test_on_regression_a_ticket_waits_only_where_a_shard_would_lose_every_row(backbone, inbox):
    stream = asking("asks-emptied", backbone, inbox, erasure="on-regression")
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    every = tickets.resolve_targets(stream.name, [f"person-{n}" for n in range(10)], [])
    waits = tickets.open_ticket(stream.name, every, "test")
    assert waits.state == TicketState.RECEIVED
    assert [r.request_id for r in actions.waiting_requests(stream.name)] == [f"erasure:{waits.ticket_id}"]
    one = tickets.resolve_targets(stream.name, ["person-1"], [])
    assert tickets.open_ticket(stream.name, one, "test").state == TicketState.APPROVED


def test_a_refused_merge_is_not_kept_and_an_approved_one_is(backbone, inbox):
    stream = asking("asks-merge", backbone, inbox, merge="always")
    for name, topics in (("01", ["red", "blue"]), ("02", ["green", "gold"])):
        deliver(inbox, name, topics, rows=120)
    learn(stream)
    pair = serving_pair(stream)
    tried = consolidate(stream, pair, dry_run=True)
    assert actions.waiting_requests(stream.name) == [], "a dry run asks nobody"
    outcome = consolidate(stream, pair)
    assert (tried.accepted, tried.reason) == (outcome.accepted, outcome.reason)
    assert not outcome.accepted
    assert "waits for a person" in outcome.reason
    assert not consolidate(stream, pair[::-1]).accepted
    actions.answer(f"merge:{'+'.join(pair)}", True, "Ann", "")
    assert actions.waiting_requests(stream.name) == [], "no other merge of them is left to grant"
    states = [row["state"] for row in queries.listing("adapters", stream.name)]
    assert states.count(AdapterState.MERGED) + states.count(AdapterState.RETIRED) == 2


def test_an_erasure_waits_and_silence_denies_nobody(backbone, inbox, monkeypatch):
    """Who was asked while no server listened is asked again when one does."""
    asked = []
    monkeypatch.setattr(missed, "start_asking", asked.append)
    stream = asking("asks-erasure", backbone, inbox, erasure="always", hours=1e-9)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    ticket = tickets.open_ticket(stream.name, tickets.resolve_targets(stream.name, ["person-1"], []), "test")
    assert ticket.state == TicketState.RECEIVED
    assert settle_overdue(stream) == []
    missed.start_missed.fn(stream.name)
    assert [request.request_id for request in asked] == [f"erasure:{ticket.ticket_id}"]
    actions.answer(f"erasure:{ticket.ticket_id}", True, "Ann", "")
    missed.start_missed.fn(stream.name)
    assert len(asked) == 1
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
def test_silence_approves_where_the_policy_says_so(backbone, inbox, tmp_path):
    """The sweep answers in nobody's name, and a run of `approve` carries it out."""
    stream = asking("asks-silence", backbone, inbox, promotion="always", hours=1e-9, on_timeout="approve")
    deploy(stream)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    assert status(stream)["champion"] is None
    run_deployment(f"catch-up/{stream.name}", timeout=0)
    with worker("cpu", tmp_path / "log"):
        until(lambda: status(stream)["champion"] == 1, 900)
    assert ("champion", 1, "time-out") in aliases(stream)
    with database.transaction() as session:
        request = approvals.get(session, "promotion:asks-silence/1")
    assert (request.approved, request.approver, request.note) == (True, "time-out", "nobody answered in time")


def ends_with_suspension(api, run) -> bool:
    """Whether the server got all of the run's heartbeats, of which there are some, before it was suspended."""
    wanted = {"resource": {"id": [f"prefect.flow-run.{run.id}"]}, "event": {"name": [HEARTBEAT, SUSPENDED]}}

    def received() -> list[str]:
        found = call_api(api, "/events/filter", {"filter": wanted, "limit": 50})["events"]
        return [each["event"] for each in sorted(found, key=lambda each: each["received"])]

    names = until(lambda: SUSPENDED in (found := received()) and found, 60)
    return HEARTBEAT in names and names[-1] == SUSPENDED


@pytest.mark.services
@pytest.mark.timeout(2400)
def test_a_suspended_run_asks_with_a_form_and_carries_the_answer_out(server, backbone, inbox, tmp_path_factory):
    """All three gates; answered by Prefect's client, by its API, and by the shell's verb."""
    stream = asking("asks-form", backbone, inbox, promotion="always", merge="always", erasure="always")
    deploy(stream)
    for name, topics in (("01", ["red", "blue"]), ("02", ["green", "gold"])):
        deliver(inbox, name, topics, rows=120)
    learn(stream)
    pair = serving_pair(stream)
    consolidate(stream, pair)
    ticket = tickets.open_ticket(stream.name, tickets.resolve_targets(stream.name, ["person-1"], []), "test")
    promotion, merge, erasure = "promotion:asks-form/2", f"merge:{'+'.join(pair)}", f"erasure:{ticket.ticket_id}"

    def suspended() -> dict:
        found = {run.parameters["request_id"]: run for run in runs_of("approve") if run.state_name == "Suspended"}
        return found if {promotion, merge, erasure} <= set(found) else {}

    def completed(name: str) -> bool:
        return any(run.name == name and run.state_name == "Completed" for run in runs_of("approve"))

    folder = tmp_path_factory.mktemp("form")
    with worker("cpu", folder / "log"):
        waiting = until(suspended, 900)
        for run in waiting.values():
            assert ends_with_suspension(server, run), f"a heartbeat after it would be taken for the last one: {run.id}"
        if pages.find_browser() is not None:
            page = f"{server.removesuffix('/api')}/runs/flow-run/{waiting[promotion].id}"
            picture = Path(os.environ.get("PICTURES", folder)) / "suspended.png"
            pages.take_picture(page, picture, folder / "profile", (promotion, "Suspended"))
        with get_client(sync_client=True) as client:
            schemas = [
                json.loads(key.value)
                for key in client.filter_flow_run_input(waiting[merge].id, key_prefix="", limit=10, exclude_keys=set())
                if key.key.endswith("schema")
            ]
        assert schemas[0]["required"] == ["approver"]
        for nameless in ({"approved": True}, {"approved": True, "approver": " "}):
            with pytest.raises(Exception, match="approver"):
                resume_flow_run(waiting[merge].id, run_input=nameless)
        # one after the other: a merge makes another challenger, and an erasure changes what may be merged
        assert "the run that waited carries it out" in actions.answer(promotion, True, "Cleo", "seen")
        until(lambda: completed(f"{promotion}: approved by Cleo"), 900)
        resume_flow_run(waiting[merge].id, run_input={"approver": "Ann", "approved": True, "note": "seen"})
        until(lambda: completed(f"{merge}: approved by Ann"), 900)
        answer = {"run_input": {"approver": "Bob", "approved": True, "note": "identity checked"}}
        resumed = call_api(server, f"/flow_runs/{waiting[erasure].id}/resume", answer)
        states = {run.name: (run.state_name, run.state.message) for run in runs_of("approve")}
        assert resumed["status"] == "ACCEPT", (resumed, states)
        until(lambda: completed(f"{erasure}: approved by Bob"), 900)
    assert ("champion", 2, "Cleo") in aliases(stream)
    states = [row["state"] for row in queries.listing("adapters", stream.name)]
    assert (
        states.count(AdapterState.MERGED) + states.count(AdapterState.RETIRED) == 2
    )  # retired where the ticket rebuilt them
    assert tickets.read_ticket(ticket.ticket_id).state != TicketState.RECEIVED
    with database.transaction() as session:
        kept = [approvals.get(session, request) for request in (promotion, merge, erasure)]
    assert [(each.approved, each.approver) for each in kept] == [(True, "Cleo"), (True, "Ann"), (True, "Bob")]
