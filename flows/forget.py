"""Work deletion tickets: find what they reach, stop serving it, rebuild without it, prove it, close them."""

from collections.abc import Sequence

from prefect import flow

from registry.records import Ticket
from registry.stream import Stream
from tasks.closing import certify, close
from tasks.comparison import compare
from tasks.exclusion import alone
from tasks.forgetting import begin, next_tickets, quarantine, resolve
from tasks.monitoring import monitor
from tasks.purging import purge
from tasks.rebuilding import drop, rebuild
from tasks.registration import register_rebuilt, serve_meanwhile, stand_in
from tasks.reports import report_ticket
from tasks.sweeping import sweep
from tasks.tickets import read_ticket


@flow(name="forget", flow_run_name="forget-{ticket_id}")
def forget(ticket_id: str) -> Ticket:
    """Return the closed ticket: complete with a certificate, or an exception that says what is left.

    The parameter is a ticket id: no run, log or tag ever holds a subject. What the ticket reaches was withdrawn when it
    took effect; where nothing clean is left, what it leaves alone serves at once. Then the stream is held against
    learning and merging, and every open ticket of it is worked, those that came in together as one batch. Every step is
    noted, so a killed run goes on where it stopped; a closed ticket is left alone.
    """
    stream = begin(ticket_id)
    stand_in(stream, ticket_id)
    with alone(stream.name):
        while together := next_tickets(stream):
            work(stream, together)
    return read_ticket(ticket_id)


def work(stream: Stream, together: Sequence[Ticket]) -> None:
    """One closure and one rebuild for all of these tickets, a certificate for each."""
    resolved = resolve(stream, together)
    quarantined = quarantine(stream, together, resolved)
    dropped = drop(stream, together, resolved)
    serve_meanwhile(stream, together)
    rebuilt = rebuild(stream, together, resolved, dropped)
    compared = compare(stream, together, resolved, rebuilt)
    monitored = monitor(stream, together, resolved)
    register_rebuilt(stream, together, rebuilt, compared)
    purged = purge(stream, together, resolved, quarantined)
    swept = sweep(stream, together, resolved, quarantined)
    details = {"resolve": resolved, "rebuild": rebuilt, "compare": compared, "monitor": monitored}
    details |= {"purge": purged, "sweep": swept}
    for ticket in together:
        certified = certify(stream, ticket, together, details)
        report_ticket(stream, close(ticket, certified))
