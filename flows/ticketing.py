"""What people do to deletion tickets before and beside `deciduous erase`, and the key that hashes their subjects."""

# ruff: noqa: PLC0415

from dataclasses import asdict
from typing import Annotated, Any

import typer

from flows import console
from flows.console import Json, acting
from infra.users import user_name

app = typer.Typer(
    no_args_is_help=True, help="Verify, approve, deny, extend and reopen deletion tickets; find the late."
)

TicketId = Annotated[str, typer.Argument(help="Id of a ticket, as `deciduous ls tickets` lists it.")]
By = Annotated[str, typer.Option(help="Who does it; kept in the ticket's log.", default_factory=user_name)]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the ticket's log. Name no subject.")]


@app.command()
def verify(ticket: TicketId, by: By, reason: Why = "", json: Json = False) -> None:
    """Note that the identity of who asks was checked. Example: deciduous ticket verify t-20261121-1a2b3c4d"""
    with acting(quiet=True) as actions:
        _show(actions.tickets.verify_ticket(ticket, by, reason), json)


@app.command()
def approve(ticket: TicketId, by: By, reason: Why = "", json: Json = False) -> None:
    """Let a ticket take effect; then: deciduous erase STREAM --ticket ID. Example: deciduous ticket approve t-1"""
    with acting(quiet=json) as actions:
        _show(actions.tickets.approve_ticket(ticket, by, reason), json)


@app.command()
def deny(ticket: TicketId, by: By, reason: Why, json: Json = False) -> None:
    """Refuse a ticket before it takes effect. Example: deciduous ticket deny t-1 --reason 'identity not shown'"""
    with acting(quiet=True) as actions:
        _show(actions.tickets.deny_ticket(ticket, by, reason), json)


@app.command()
def extend(ticket: TicketId, by: By, reason: Why, json: Json = False) -> None:
    """Move the due date by two months, once, before it passes. Example: deciduous ticket extend t-1 --reason complex"""
    with acting(quiet=True) as actions:
        _show(actions.tickets.extend_ticket(ticket, by, reason), json)


@app.command()
def reopen(ticket: TicketId, by: By, reason: Why, json: Json = False) -> None:
    """Take an exception up again and work it. Example: deciduous ticket reopen t-1 --reason 'the hold was lifted'"""
    with acting(quiet=json) as actions:
        closed = actions.rework(ticket, by, reason)
    _show(closed, json)
    if closed.state == "exception":
        raise typer.Exit(1)


@app.command()
def overdue(
    stream: Annotated[str | None, typer.Option(help="Only of this stream.")] = None, json: Json = False
) -> None:
    """Open tickets past their due date, the longest first; exit code 1 if any. Example: deciduous ticket overdue"""
    with acting(quiet=True) as actions:
        rows = [asdict(ticket) for ticket in actions.tickets.overdue_tickets(stream)]
    console.show_json(rows) if json else console.show_rows("overdue", rows)
    if rows:
        raise typer.Exit(1)


@app.command()
def audit(json: Json = False) -> None:
    """Check the chains of the ticket log and of all certificates of this home. Example: deciduous ticket audit"""
    with acting(quiet=True) as actions:
        found = actions.audit()
    console.show_json(found) if json else console.show_record(found)


@app.command()
def rotate_key() -> None:
    """Hash subjects with a new key; what the old one hashed is still found. Example: deciduous ticket rotate-key"""
    from infra import keys

    retired = keys.rotate_hash_key()
    console.console.print(f"the old key lies in {retired}; keep it, and back it up like the new one")


@app.command()
def rotate_signing_key() -> None:
    """Sign certificates with a new key, for which the old one gives its word; older certificates stay valid.
    Example: deciduous ticket rotate-signing-key"""
    from infra import signing

    console.console.print(f"publish this beside the keys before it:\n{signing.rotate_signing_key()}")


def _show(ticket: Any, json: bool) -> None:
    console.show_json(asdict(ticket)) if json else console.show_record(asdict(ticket))
