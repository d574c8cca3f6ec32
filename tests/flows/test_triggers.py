"""A ticket starts `forget` once, however it came in; a lost start is caught up; MLflow's aliases are watched."""

import json
import urllib.request
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar
from uuid import uuid4

import pytest
from prefect import get_client
from prefect.events.schemas.automations import AutomationCore
from sqlalchemy import text

from flows.deployments import deploy
from flows.learn import learn
from infra import database
from registry.tables import now
from tasks import tickets
from tasks.events import BATCH_HELD, TICKET_OPENED, announce
from tasks.missed import GRACE, start_missed
from tests.flows.conftest import deliver, make_stream
from tests.flows.server import deciduous, runs_of, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(1200), pytest.mark.usefixtures("ready", "server")]


def forget_runs(ticket_id: str) -> list:
    return [run for run in runs_of("forget") if run.parameters["ticket_id"] == ticket_id]


def open_ticket(stream, subject: str):
    return tickets.open_ticket(stream.name, tickets.resolve_targets(stream.name, [subject], []), "test")


def insert_ticket(stream, received=None) -> str:
    """What a ticketing system does: two rows by SQL, keyed hashes, no subject."""
    ticket_id = f"crm-{uuid4().hex[:8]}"
    (kind, keyed), *_ = tickets.resolve_targets(stream.name, ["person-1"], [])
    row = {"t": ticket_id, "s": stream.name, "k": kind, "h": keyed, "at": received or now(), "due": now()}
    with database.transaction() as session:
        session.execute(
            text(
                "insert into ticket (ticket_id, stream, state, epoch, records, received_at, due_at, opened_by, note) "
                "values (:t, :s, 'received', 0, 0, :at, :due, 'crm', '')"
            ),
            row,
        )
        session.execute(
            text("insert into suppression (ticket_id, kind, keyed_hash, stream, epoch) values (:t, :k, :h, :s, 0)"), row
        )
    return ticket_id


def post_event(api: str, stream: str, ticket_id: str) -> None:
    event = {
        "id": str(uuid4()),
        "occurred": now().isoformat(),
        "event": TICKET_OPENED,
        "resource": {"prefect.resource.id": f"deciduous.ticket.{ticket_id}", "deciduous.stream": stream},
        "payload": {"ticket_id": ticket_id},
    }
    body = json.dumps([event]).encode()
    urllib.request.urlopen(urllib.request.Request(f"{api}/events", body, {"Content-Type": "application/json"})).close()


@pytest.fixture
def deployed(backbone, inbox, request):
    stream = make_stream(request.node.name.removeprefix("test_").replace("_", "-")[:40], backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    deploy(stream)
    return stream


def test_a_ticket_from_the_shell_starts_forget_once(server, deployed):
    ticket = open_ticket(deployed, "person-1").ticket_id
    assert until(lambda: forget_runs(ticket))
    post_event(server, deployed.name, ticket)
    other = open_ticket(deployed, "person-2").ticket_id
    assert until(lambda: forget_runs(other)), "events are handled in order: the second telling of the first is past"
    assert len(forget_runs(ticket)) == 1


def test_a_ticket_by_http_starts_forget_once(server, deployed):
    ticket = insert_ticket(deployed)
    for _ in range(3):
        post_event(server, deployed.name, ticket)
    assert until(lambda: forget_runs(ticket))
    other = insert_ticket(deployed)
    post_event(server, deployed.name, other)
    until(lambda: forget_runs(other))
    assert len(forget_runs(ticket)) == 1


def test_a_ticket_by_sql_is_seen_by_the_watch(deployed, tmp_path):
    first = insert_ticket(deployed)
    with deciduous("watch", tmp_path / "log"):
        assert len(until(lambda: forget_runs(first), 600)) == 1
        second = insert_ticket(deployed)
        assert len(until(lambda: forget_runs(second))) == 1


def test_a_missed_ticket_is_started_at_the_next_tick_once(deployed):
    young, old = insert_ticket(deployed), insert_ticket(deployed, now() - 2 * GRACE)
    assert start_missed.fn(deployed.name) == [old]
    assert start_missed.fn(deployed.name) == []
    assert (len(forget_runs(old)), forget_runs(young)) == (1, [])


def test_a_start_that_the_server_refused_is_caught_up(server, deployed):
    with get_client(sync_client=True) as client:
        (automation,) = client.read_automations_by_name(f"{deployed.name}: a ticket starts forget")
        broken = automation.actions[0].model_copy(update={"parameters": {"no_such_parameter": "{{ event.id }}"}})
        fields = {**automation.model_dump(exclude={"id", "owner_resource"}), "actions": [broken]}
        client.update_automation(automation.id, AutomationCore(**fields))
    ticket = insert_ticket(deployed, now() - timedelta(hours=1))
    post_event(server, deployed.name, ticket)
    caught = until(lambda: [r for r in runs_of("catch-up") if r.parameters["stream"] == deployed.name])
    assert len(caught) == 1
    assert start_missed.fn(deployed.name) == [ticket]


class Inbox(BaseHTTPRequestHandler):
    """What a chat service would receive."""

    received: ClassVar[list[str]] = []

    def do_POST(self):
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_held_batch_is_told_once_a_block_is_named(backbone, inbox, set_variable):
    from prefect.blocks.notifications import CustomWebhookNotificationBlock  # noqa: PLC0415  slow to import

    stream = make_stream("told", backbone, inbox)
    off = [change for change in deploy(stream) if "notify" in change.what]
    assert [change.details for change in off] == ["off until configured"] * 4
    server = ThreadingHTTPServer(("127.0.0.1", 0), Inbox)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    block = CustomWebhookNotificationBlock(name="ops", url=url, json_data={"text": "{{subject}}: {{body}}"})
    block.save("ops", overwrite=True)
    set_variable("NOTIFY", "custom-webhook/ops")
    assert {c.action for c in deploy(stream) if "notify" in c.what} == {"change"}
    announce(BATCH_HELD, stream.name, "batch", "b-1", batch="06-sports", reason="too few rows")
    until(lambda: Inbox.received)
    server.shutdown()
    server.server_close()
    assert "Batch 06-sports of stream told is held: too few rows" in Inbox.received[0]
