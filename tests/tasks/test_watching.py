"""What nobody started is found, whatever a server or one stream makes of it."""

from datetime import timedelta
from types import SimpleNamespace

from httpx import ConnectError
from prefect.states import Failed, Running

from registry.records import Ticket, TicketState
from registry.tables import now
from tasks import missed, watching

PAGE = 200
"""What Prefect's server answers at most."""


def forget_run(ticket_id: str, is_final: bool, ended: timedelta = timedelta(days=1)) -> SimpleNamespace:
    """One that runs, or failed so long ago."""
    state = Failed() if is_final else Running()
    state.timestamp = now() - ended
    return SimpleNamespace(parameters={"ticket_id": ticket_id}, state=state)


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


def test_a_ticket_whose_runs_fail_waits_longer_each_time_unless_a_person_asks():
    """It was started again every minute, without end."""
    failing = Ticket("t-failing", "mail", TicketState.APPROVED, now(), now(), 0)

    def found(failures: int, minutes: float, at_once: str | None = None) -> bool:
        ended = (timedelta(minutes=minutes + n) for n in range(failures))
        runs = [forget_run("t-failing", True, each) for each in ended]
        return bool(missed._without_run(server_with(runs), "mail", [failing], at_once))

    assert (found(1, 0.9), found(1, 1.1)) == (False, True)
    assert (found(4, 7.9), found(4, 8.1)) == (False, True)
    assert (found(50, 59), found(50, 61)) == (False, True)
    assert found(50, 0, "t-failing")


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
