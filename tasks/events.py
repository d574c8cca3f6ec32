"""Events of ours in Prefect's feed. They hold ids and figures; automations act on them."""

import os
from datetime import datetime
from typing import Any

from prefect.events import emit_event

from registry.records import Ticket

TICKET_OPENED = "deletion.ticket.opened"
TICKET_OVERDUE = "deletion.ticket.overdue"
BATCH_HELD = "batch.held"
GATE_REFUSED = "gate.refused"
ALIAS_MOVED = "alias.moved"


def announce(event: str, stream: str, kind: str, id_: str, **payload: Any) -> None:
    """Emit an event about one thing of a stream; nothing happens where no server listens."""
    if os.environ.get("PREFECT_API_URL"):
        resource = {"prefect.resource.id": f"deciduous.{kind}.{id_}", "deciduous.stream": stream}
        emit_event(event, resource, payload={"stream": stream, **{k: _plain(v) for k, v in payload.items()}})


def announce_ticket(event: str, ticket: Ticket) -> None:
    due = {"due_at": ticket.due_at, "state": ticket.state.value}
    announce(event, ticket.stream, "ticket", ticket.ticket_id, ticket_id=ticket.ticket_id, **due)


def _plain(value: Any) -> Any:
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else value
