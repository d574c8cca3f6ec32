"""A step of a deletion ticket runs once: what it recorded is returned when a run is repeated."""

import time
from collections.abc import Callable
from typing import Any

from infra import database
from registry import tickets

Detail = dict[str, Any]


def once(ticket_id: str, name: str, work: Callable[[], Detail]) -> Detail:
    """Run `work` unless the ticket's step is done; `work` itself is idempotent, for a crash before the note."""
    with database.transaction() as session:
        known = tickets.done_step(session, ticket_id, name)
    if known is not None:
        return known
    start = time.perf_counter()
    detail = work()
    with database.transaction() as session:
        tickets.finish_step(session, ticket_id, name, detail, time.perf_counter() - start)
    return detail
