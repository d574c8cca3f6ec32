"""Open, approve, extend and reopen deletion tickets: what people do to them. `flows.forget` works them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from secrets import token_hex
from typing import Any

from sqlalchemy.orm import Session

from infra import database
from registry import approvals, catalog, contents, lineage, ownership, suppression, tickets, versions
from registry.errors import StateError
from registry.records import Gate, StoredObject, Ticket, TicketState
from registry.stream import Stream
from registry.tables import now
from tasks import prefix_cache, suppression_journal
from tasks.alias_moves import mirror_aliases, withdraw_versions
from tasks.approvals import word_on
from tasks.events import TICKET_OPENED, announce_ticket
from tasks.identity import catalog_key, keyed_hashes
from tasks.narration import say
from tasks.policies.approval import asks_person
from tasks.policies.guarantee import is_clean

AUTOMATIC = "deciduous"

APPROXIMATE = "approximate"
"""Noted like a step where a ticket is worked approximately first; reopened, it is worked exactly."""

LAST_STEPS = ("purge", "sweep", "certify")
ALL_STEPS = (APPROXIMATE, "quarantine", "drop", "rebuild", "compare", "monitor", "register", *LAST_STEPS)

SERVED = ("statistics", "weights", "descriptor")
"""Kinds of blobs that a version's manifest names."""

Targets = Iterable[tuple[str, str]]
Detail = dict[str, Any]


def resolve_targets(stream: str, subjects: Sequence[str], records: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, keyed hash) of what is to be forgotten. Names stop here: nothing after this function sees one."""
    named = [("subject", name.strip()) for name in subjects] + [("record", name.strip()) for name in records]
    return [(kind, keyed) for kind, name in named if name for keyed in keyed_hashes(kind, stream, name)]


def find_records(session: Session, targets: Iterable[tuple[str, str]]) -> dict[int, list[int]]:
    """Shard id -> catalog keys of the records that the targets name."""
    every = list(targets)
    subjects = [catalog_key(h) for kind, h in every if kind == "subject"]
    records = [catalog_key(h) for kind, h in every if kind == "record"]
    found = lineage.records_of_subjects(session, subjects)
    for shard_id, keys in lineage.records_by_key(session, records).items():
        found[shard_id] = sorted({*found.get(shard_id, []), *keys})
    return found


def targets_of_ticket(ticket_id: str) -> list[tuple[str, str]]:
    """(kind, keyed hash) of what a ticket names. Raises UnknownIdError."""
    with database.transaction() as session:
        return tickets.targets_of(session, tickets.get_ticket(session, ticket_id).ticket_id)


def open_ticket(stream: str, targets: Targets, opened_by: str, approximate: bool = False) -> Ticket:
    """Enter the ticket. Where the stream asks for no approval it takes effect at once.

    `approximate` has adapters suppressed first, until the ticket is reopened and they are trained again."""
    with database.transaction() as session:
        config, received = catalog.get_stream(session, stream), now()
        found = find_records(session, targets)
        ticket = Ticket(
            ticket_id=f"t-{received:%Y%m%d}-{token_hex(4)}",
            stream=stream,
            state=TicketState.RECEIVED,
            received_at=received,
            due_at=tickets.due_date(received, config.deletion.due_days),
            records=sum(map(len, found.values())),
        )
        ticket = tickets.open_ticket(session, ticket, targets, opened_by)
        if approximate:
            tickets.finish_step(session, ticket.ticket_id, APPROXIMATE, {}, 0.0)
        asked = asks_first(session, config, found)
        if not asked:
            ticket = _approve(session, ticket.ticket_id, AUTOMATIC, "the stream asks for no approval")
    mirror_aliases(stream)
    if asked:
        word_on(config, Gate.ERASURE, ticket.ticket_id, f"{ticket.records} records in {len(found)} shards")
    else:
        announce_ticket(TICKET_OPENED, ticket)
    say(f"ticket {ticket.ticket_id}: {ticket.records} records in {len(found)} shards, due {ticket.due_at:%Y-%m-%d}")
    return ticket


def asks_first(session: Session, stream: Stream, found: Mapping[int, Sequence[int]]) -> bool:
    """Whether a person approves the ticket first; 'on-regression' asks where a shard would lose every row."""
    emptied = any(len(found[shard.shard_id]) >= shard.rows for shard in contents.shards(session, found))
    return asks_person(stream.gates.approval.erasure, emptied)


def approve_ticket(ticket_id: str, by: str, note: str = "") -> Ticket:
    """Let a ticket take effect: nothing that its records shaped serves from this moment on."""
    with database.transaction() as session:
        ticket = _approve(session, ticket_id, by, note)
    mirror_aliases(ticket.stream)
    announce_ticket(TICKET_OPENED, ticket)
    say(f"ticket {ticket_id} approved by {by}")
    return ticket


def _approve(session: Session, ticket_id: str, by: str, note: str) -> Ticket:
    """Suppress, raise the epoch and withdraw in one transaction: there is no moment between them."""
    ticket = tickets.approve(session, ticket_id, by, note)
    _settle_request(session, ticket_id, True, by, note)
    withdraw(session, ticket)
    suppression_journal.note(ticket, tickets.targets_of(session, ticket_id))
    return ticket


def _settle_request(session: Session, ticket_id: str, approved: bool, by: str, note: str) -> None:
    """Nobody has to answer any more what was asked about the ticket."""
    request = approvals.find(session, f"{Gate.ERASURE.value}:{ticket_id}")
    if request is not None and request.approved is None:
        approvals.answer(session, request.request_id, approved, by, note)


def replay(session: Session, stream: str, by: str) -> list[str]:
    """Bring every ticket into force that took effect and that the catalog does not know, or knows as one that waits:
    it was restored, or begun anew. Returns their ids; the caller mirrors the aliases."""
    known, replayed = {each.ticket_id: each.state for each in tickets.tickets(session, stream)}, []
    for ticket, targets in suppression_journal.noted(stream):
        if known.get(ticket.ticket_id, TicketState.RECEIVED) not in tickets.WAITING:
            continue
        if ticket.ticket_id not in known:
            tickets.open_ticket(session, ticket, targets, by)
        why = "took effect before this catalog knew of it"
        tickets.approve(session, ticket.ticket_id, by, why)
        _settle_request(session, ticket.ticket_id, True, by, why)
        withdraw(session, tickets.get_ticket(session, ticket.ticket_id))
        replayed.append(ticket.ticket_id)
    return replayed


def withdraw(session: Session, ticket: Ticket) -> list[int]:
    """Take every version that the ticket's records may have shaped out of service; returns them."""
    found = find_records(session, tickets.targets_of(session, ticket.ticket_id))
    tainted = versions_shaped_by(session, ticket.stream, found)
    withdraw_versions(session, ticket.stream, tainted, f"ticket {ticket.ticket_id}")
    return tainted


def versions_shaped_by(session: Session, stream: str, shard_ids: Iterable[int]) -> list[int]:
    """All that may rest on rows of these shards. Rows that a batch refused shaped none."""
    batch_ids = {shard.batch_id for shard in contents.shards(session, shard_ids)}
    return versions.registered_since(session, stream, batch_ids)


def startable(stream: str | None = None, known: Collection[str] = ()) -> list[Ticket]:
    """Open tickets that a run should work, without the known ones; where a person comes first, the person is asked.

    A ticketing system inserts rows and tells nobody, so this looks at the catalog."""
    with database.transaction() as session:
        every = tickets.tickets(session, stream, *tickets.WAITING, *tickets.WORKED)
        found = [ticket for ticket in every if ticket.ticket_id not in known]
        configs = {name: catalog.get_stream(session, name) for name in {ticket.stream for ticket in found}}
        waiting = [t for t in found if t.state in tickets.WAITING]
        targets = {t.ticket_id: find_records(session, tickets.targets_of(session, t.ticket_id)) for t in waiting}
        asked = [t for t in waiting if asks_first(session, configs[t.stream], targets[t.ticket_id])]
    for ticket in asked:
        word_on(configs[ticket.stream], Gate.ERASURE, ticket.ticket_id, f"{len(targets[ticket.ticket_id])} shards")
    return [ticket for ticket in found if ticket not in asked]


def verify_ticket(ticket_id: str, by: str, note: str = "") -> Ticket:
    """Note who checked the identity of the person that asks."""
    with database.transaction() as session:
        return tickets.verify_identity(session, ticket_id, by, note)


def deny_ticket(ticket_id: str, by: str, reason: str) -> Ticket:
    with database.transaction() as session:
        _settle_request(session, ticket_id, False, by, reason)
        return tickets.deny(session, ticket_id, by, reason)


def extend_ticket(ticket_id: str, by: str, reason: str) -> Ticket:
    with database.transaction() as session:
        return tickets.extend(session, ticket_id, by, reason)


def overdue_tickets(stream: str | None = None, moment: datetime | None = None) -> list[Ticket]:
    with database.transaction() as session:
        if stream is not None:
            catalog.get_stream(session, stream)
        return tickets.overdue(session, moment or now(), stream)


def read_ticket(ticket_id: str) -> Ticket:
    with database.transaction() as session:
        return tickets.get_ticket(session, ticket_id)


def reopen_ticket(ticket_id: str, by: str, reason: str) -> Ticket:
    """Take an exception up again; `flows.forget` then works it.

    Where only a store refused to give something up, or a monitor spoke up, from the purge on: who reopens has looked.
    Otherwise from the beginning: what was made is withdrawn and condemned, and no checkpoint and no cached state of it
    is used. What was suppressed is trained again.
    """
    with database.transaction() as session:
        ticket = tickets.get_ticket(session, ticket_id)
        if ticket.state != TicketState.EXCEPTION:
            todo = f"; go on with it: deciduous erase {ticket.stream} --ticket {ticket_id}"
            raise StateError(
                f"ticket {ticket_id!r} is {ticket.state}, and only an exception is reopened"
                f"{todo if ticket.state in tickets.WORKED else ''}"
            )
        noted = {row.step: row.detail for row in tickets.steps_of(session, ticket_id)}
        begin_anew = _is_unclean(noted)
        tickets.reopen(session, ticket_id, by, reason, ALL_STEPS if begin_anew else LAST_STEPS)
        if begin_anew:
            _condemn_attempt(session, ticket, noted)
    if begin_anew:
        prefix_cache.clear(ticket.stream)
        mirror_aliases(ticket.stream)
    return read_ticket(ticket_id)


def _is_unclean(noted: Mapping[str, Detail]) -> bool:
    """Whether more is left than what a store refused or a person has to look at."""
    clean = all(is_clean(found) for found in noted["compare"]["compared"].values())
    return (
        not clean
        or "suppress" in noted["rebuild"]["actions"].values()
        or (noted["sweep"]["hits"] > 0 and not noted["purge"]["refused"])
    )


def is_shaped(stored: StoredObject, actions: Mapping[str, str], shard_ids: Collection[int]) -> bool:
    """Whether what serves of this node rests on rows of these shards: of an adapter that is refitted, statistics only.

    `actions` are the repairs by adapter."""
    if actions.get(stored.owner.removeprefix("adapter:")) == "refit":
        return stored.kind in {f"statistics:{shard_id}" for shard_id in shard_ids}
    return stored.kind.partition(":")[0] in SERVED


def _condemn_attempt(session: Session, ticket: Ticket, noted: Mapping[str, Detail]) -> None:
    resolved, actions = noted["resolve"], noted["rebuild"]["actions"]
    owners = [f"adapter:{adapter_id}" for adapter_id in actions]
    found = ownership.objects_of(session, [*owners, *(f"shard:{shard_id}" for shard_id in resolved["shards"])])
    served = [stored.sha256 for stored in found if is_shaped(stored, actions, resolved["shards"])]
    suppression.condemn(session, ticket.stream, ticket.lead or ticket.ticket_id, served)
    for stored in found:
        if stored.kind.startswith("checkpoint:"):
            ownership.drop_object(session, stored.owner, stored.kind)
    made = versions_shaped_by(session, ticket.stream, resolved["shards"])
    withdraw_versions(session, ticket.stream, made, f"ticket {ticket.ticket_id} is worked again")
