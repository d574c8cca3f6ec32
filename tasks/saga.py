"""A step of a deletion runs once: what it recorded is returned when a run is repeated.

Tickets that are worked together share their steps, noted under the first of them.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from infra import database
from registry import tickets
from registry.records import Ticket
from tasks.exclusion import still_alone

Detail = dict[str, Any]


def once(together: Sequence[Ticket], name: str, work: Callable[[], Detail]) -> Detail:
    """Run `work` unless the tickets' step is done; `work` itself is idempotent, for a crash before the note."""
    lead = together[0].ticket_id
    with database.transaction() as session:
        still_alone(session, together[0].stream)
        known = tickets.done_step(session, lead, name)
    if known is not None:
        return known
    start = time.perf_counter()
    detail = work()
    with database.transaction() as session:
        still_alone(session, together[0].stream)
        tickets.finish_step(session, lead, name, detail, time.perf_counter() - start)
    return detail
