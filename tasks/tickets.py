"""Open a deletion ticket: from names to keyed hashes, suppressed from that moment on."""

from collections.abc import Sequence
from secrets import token_hex

from infra import database
from registry import catalog, lineage, tickets
from registry.records import Ticket, TicketState
from registry.tables import now
from tasks.identity import catalog_key, keyed_hash
from tasks.narration import say


def resolve_targets(stream: str, subjects: Sequence[str], records: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, keyed hash) of what is to be forgotten. Names stop here: nothing after this function sees one."""
    hashed = [("subject", keyed_hash("subject", stream, s.strip())) for s in subjects if s.strip()]
    return hashed + [("record", keyed_hash("record", stream, r.strip())) for r in records if r.strip()]


def count_records(targets: Sequence[tuple[str, str]]) -> dict[int, list[int]]:
    """Shard id -> catalog keys of the records that the targets name."""
    subjects = [catalog_key(h) for kind, h in targets if kind == "subject"]
    records = [catalog_key(h) for kind, h in targets if kind == "record"]
    with database.transaction() as session:
        found = lineage.records_of_subjects(session, subjects)
        for shard_id, keys in lineage.records_by_key(session, records).items():
            found[shard_id] = sorted({*found.get(shard_id, []), *keys})
    return found


def open_ticket(stream: str, targets: Sequence[tuple[str, str]], opened_by: str) -> Ticket:
    """Enter the ticket; from here on ingest drops its targets and the release gate refuses what they shaped."""
    found = count_records(targets)
    with database.transaction() as session:
        config = catalog.get_stream(session, stream)
        received = now()
        ticket = Ticket(
            ticket_id=f"t-{received:%Y%m%d}-{token_hex(4)}",
            stream=stream,
            state=TicketState.RECEIVED,
            received_at=received,
            due_at=tickets.due_date(received, config.deletion.due_days),
            records=sum(map(len, found.values())),
        )
        tickets.open_ticket(session, ticket, targets, opened_by)
    say(f"ticket {ticket.ticket_id}: {ticket.records} records in {len(found)} shards, due {ticket.due_at:%Y-%m-%d}")
    return ticket
