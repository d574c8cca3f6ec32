"""What nobody started is found, whatever a server or one stream makes of it."""

from types import SimpleNamespace

from httpx import ConnectError

from registry.records import Ticket, TicketState
from registry.tables import now
from tasks import missed, watching

PAGE = 200
"""What Prefect's server answers at most."""


def forget_run(ticket_id: str, is_final: bool) -> SimpleNamespace:
    return SimpleNamespace(parameters={"ticket_id": ticket_id}, state=SimpleNamespace(is_final=lambda: is_final))


def server_with(runs: list[SimpleNamespace]) -> SimpleNamespace:
    return SimpleNamespace(
        read_deployment_by_name=lambda name: name, read_flow_runs=lambda offset=0, **_: runs[offset : offset + PAGE]
    )


def test_a_ticket_is_started_however_often_it_failed_and_once_among_many_others():
    """The number of its runs is the key of the next: one that is used already would start nothing."""
    failing, waiting = (
        Ticket(ticket_id, "mail", TicketState.APPROVED, now(), now(), 0) for ticket_id in ("t-failing", "t-waiting")
    )
    runs = [forget_run("t-waiting", False), *(forget_run("t-failing", True) for _ in range(3 * PAGE))]
    assert missed._without_run(server_with(runs), "mail", [failing, waiting]) == {"t-failing": 3 * PAGE}
    assert missed._without_run(server_with(runs[::-1]), "mail", [failing, waiting]) == {"t-failing": 3 * PAGE}


def test_the_watch_outlives_a_server_that_does_not_answer_and_looks_at_every_stream(monkeypatch):
    looked, said = [], []

    def start(stream: str) -> None:
        looked.append(stream)
        raise ConnectError("connection refused")

    monkeypatch.setattr(watching.catalog, "stream_names", lambda _: ["mail", "post"])
    monkeypatch.setattr(watching, "start_missed", SimpleNamespace(fn=start))
    monkeypatch.setattr(watching, "say", said.append)
    watching.sweep_streams()
    assert looked == ["mail", "post"]
    assert all("Prefect at" in each and "connection refused" in each for each in said)
