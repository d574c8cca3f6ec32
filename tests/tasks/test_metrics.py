"""What monitoring asks for: totals of the catalog, in Prometheus' format."""

import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra import database
from registry import tables
from registry.errors import StateError
from tasks import metrics


@pytest.fixture
def catalog(tmp_path, set_variable):
    """Three batches, two decisions, tickets on time and late, a champion that moved an hour ago."""
    set_variable("DATABASE_URL", f"sqlite:///{tmp_path}/catalog.db")
    database.migrate()
    now = datetime.now(UTC)
    with database.transaction() as session:
        session.add(tables.StreamRow(name="mail", config={}, recipe_digest="r", backbone_digest="b"))
        session.flush()
        for n, state in enumerate(("done", "done", "held")):
            session.add(
                tables.BatchRow(
                    batch_id=f"b{n}",
                    stream="mail",
                    name=f"0{n}",
                    ordinal=n,
                    uri="u",
                    state=state,
                    rows=10,
                    quarantined=n,
                    suppressed=0,
                    epoch=0,
                )
            )
        session.flush()
        for kind in ("expand", "reuse"):
            session.add(
                tables.DecisionRow(stream="mail", batch_id="b0", kind=kind, adapter_id=None, reason="r", numbers={})
            )
        for n, days in enumerate((-1, 1)):
            session.add(
                tables.TicketRow(
                    ticket_id=f"t{n}",
                    stream="mail",
                    state="approved",
                    epoch=1,
                    records=1,
                    opened_by="me",
                    due_at=now + timedelta(days=days),
                )
            )
        at = now - timedelta(hours=1)
        session.add(
            tables.AliasEventRow(stream="mail", alias="champion", version=1, previous=None, by="x", reason="r", at=at)
        )
    yield
    database.engine().dispose()


def samples(text: str) -> dict:
    families = text_string_to_metric_families(text)
    every = [sample for family in families for sample in family.samples]
    # the stream first, whatever order the labels came in
    return {(s.name, *sorted(s.labels.values(), key=lambda value: value != "mail")): s.value for s in every}


@pytest.mark.usefixtures("catalog")
def test_totals_are_those_of_the_catalog():
    found = samples(metrics.exposition())
    assert found["deciduous_batches", "mail", "done"] == 2
    assert found["deciduous_batches", "mail", "held"] == 1
    assert found["deciduous_rows_total", "mail", "accepted"] == 30
    assert found["deciduous_rows_total", "mail", "quarantined"] == 3
    assert found["deciduous_decisions_total", "mail", "expand"] == 1
    assert found["deciduous_tickets", "mail", "approved"] == 2
    assert found["deciduous_tickets_overdue", "mail"] == 1
    assert 3600 <= found["deciduous_champion_age_seconds", "mail"] < 5400


@pytest.mark.usefixtures("catalog")
def test_the_endpoint_and_the_textfile_say_the_same(tmp_path):
    metrics.write_textfile(tmp_path / "deciduous.prom")
    port = metrics.serve(0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        served = samples(answer.read().decode())
    assert served.keys() == samples((tmp_path / "deciduous.prom").read_text()).keys()


@pytest.mark.usefixtures("catalog")
def test_a_port_that_is_taken_and_a_file_without_a_folder_are_named(tmp_path):
    port = metrics.serve(0)
    with pytest.raises(StateError, match=f"{port}: Address already in use; name another port"):
        metrics.serve(port)
    with pytest.raises(StateError, match=r"x\.prom: No such file or directory; make its folder"):
        metrics.write_textfile(tmp_path / "nowhere" / "x.prom")
