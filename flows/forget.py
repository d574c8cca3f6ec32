"""Work one deletion ticket: find what it reaches, stop serving it, rebuild without it, prove it, close the ticket."""

from prefect import flow

from registry.records import Ticket, TicketState
from tasks.closing import certify, close
from tasks.comparison import compare
from tasks.forgetting import begin, quarantine, resolve
from tasks.promotion import promote_version
from tasks.purging import purge, sweep
from tasks.rebuilding import rebuild
from tasks.registration import register_change
from tasks.reports import report_ticket


@flow(name="forget", flow_run_name="forget-{ticket_id}")
def forget(ticket_id: str) -> Ticket:
    """Return the closed ticket: complete with a certificate, or an exception that says what is left.

    The parameter is a ticket id: no run, log or tag ever holds a subject. Every step is noted on the ticket, so a
    killed run goes on where it stopped; a complete ticket is left alone.
    """
    ticket, stream = begin(ticket_id)
    if ticket.state == TicketState.COMPLETE:
        return ticket
    resolved = resolve(stream, ticket)
    quarantined = quarantine(stream, ticket, resolved)
    rebuilt = rebuild(stream, ticket, resolved)
    compared = compare(stream, ticket, resolved, rebuilt)
    version = register_change(stream, f"ticket:{ticket_id}", f"rebuilt without the records of ticket {ticket_id}")
    if version is not None:
        promote_version(stream, version, gated=False)
    purged = purge(stream, ticket, resolved, quarantined)
    swept = sweep(stream, ticket)
    certificate = certify(stream, ticket, rebuilt, compared, purged, swept)
    closed = close(ticket, certificate, swept)
    report_ticket(stream, closed)
    return closed
