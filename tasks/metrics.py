"""What monitoring asks for, from the catalog at the moment of the question, in Prometheus' terms."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra import database
from infra.ports import LOOPBACK
from registry import totals
from registry.errors import StateError

BY_STREAM = ("stream",)


class Catalog(Collector):
    """Asks the catalog anew whenever it is collected."""

    def collect(self) -> Iterator[Metric]:
        now = datetime.now(UTC)
        with database.transaction() as session:
            batches, rows, decisions = totals.batches(session), totals.rows(session), totals.decisions(session)
            tickets, overdue, spent = (
                totals.tickets(session),
                totals.overdue(session, now),
                totals.ticket_seconds(session),
            )
            moved = totals.champion_since(session)
        ages = [((stream,), (now - at).total_seconds()) for stream, at in moved.items()]
        yield _gauge(
            "deciduous_batches", "Batches by state; held ones wait for a person.", ("stream", "state"), batches
        )
        yield _gauge("deciduous_tickets", "Deletion tickets by state.", ("stream", "state"), tickets)
        yield _gauge("deciduous_tickets_overdue", "Open tickets whose due date has passed.", BY_STREAM, overdue)
        yield _gauge("deciduous_champion_age_seconds", "Since the champion last moved.", BY_STREAM, ages)
        yield _counter("deciduous_decisions", "Decisions by kind.", ("stream", "kind"), decisions)
        yield _counter("deciduous_rows", "Rows by what became of them.", ("stream", "outcome"), rows)
        yield _counter("deciduous_ticket_seconds", "Time that tickets took, by step.", ("step",), spent)


def exposition() -> str:
    return generate_latest(_registry()).decode()


def write_textfile(path: Path) -> None:
    """For the textfile collector of node_exporter: whole or not at all."""
    try:
        write_to_textfile(str(path), _registry())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise StateError(f"cannot write {path}: {error.strerror}; make its folder, or name another file") from None


def serve(port: int, host: str = LOOPBACK) -> int:
    """Answer GET /metrics in a thread of this process; returns the port."""
    registry = _registry()
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise StateError(f"cannot answer on {host}:{port}: {error.strerror}; name another port") from None
    return int(server.server_port)


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Catalog())
    return registry


def _gauge(name: str, text: str, labels: tuple[str, ...], found: totals.Totals) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in found:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], found: totals.Totals) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in found:
        family.add_metric(values, value)
    return family
