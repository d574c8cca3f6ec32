"""The first steps of a deletion: which tickets, what they reach, and taking it out of service."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlalchemy.orm import Session

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, contents, lineage, ownership, suppression, tickets, versions
from registry.errors import StateError
from registry.records import AdapterState, BatchState, Ticket, TicketState
from registry.stream import Stream
from registry.tickets import WAITING
from tasks.alias_moves import mirror_aliases, withdraw_versions
from tasks.markers import keep_markers
from tasks.monitoring import hold_for_monitors
from tasks.narration import say
from tasks.policies.forgetting import Plan, Repair, plan_repairs
from tasks.retries import step
from tasks.runs import refuse_after_losses
from tasks.saga import Detail, once
from tasks.shards import is_refused, load_quarantine
from tasks.tickets import AUTOMATIC, Targets, approve_ticket, asks_first, find_records, is_shaped, versions_shaped_by

LISTED = [state for state in BatchState if state != BatchState.DISCARDED]
"""Of the batches whose refused rows are listed."""


@step("begin-{ticket_id}")
def begin(ticket_id: str) -> Stream:
    """The ticket's stream. A ticket that came past `open_ticket` takes effect now, where its stream asks for no
    approval; StateError where somebody has to approve it first, or denied it."""
    refuse_after_losses()
    database.check_revision()
    with database.transaction() as session:
        ticket = tickets.get_ticket(session, ticket_id)
        stream = catalog.get_stream(session, ticket.stream)
        asked = asks_first(session, stream, find_records(session, tickets.targets_of(session, ticket_id)))
    if ticket.state == TicketState.DENIED:
        raise StateError(f"ticket {ticket_id!r} was denied: {ticket.note}; open a new one")
    if ticket.state in WAITING:
        if asked:
            raise StateError(
                f"ticket {ticket_id!r} waits for a person; approve it: deciduous ticket approve {ticket_id}"
            )
        approve_ticket(ticket_id, AUTOMATIC, "the stream asks for no approval")
    return stream


@step("next-tickets-{stream.name}")
def next_tickets(stream: Stream) -> list[Ticket]:
    """The tickets to work now, as one batch: those that an interrupted run left, else all that are approved."""
    with database.transaction() as session:
        left = tickets.tickets(session, stream.name, TicketState.IN_PROGRESS)
        if left:
            return tickets.worked_with(session, left[0].lead or left[0].ticket_id)
        approved = [ticket.ticket_id for ticket in tickets.tickets(session, stream.name, TicketState.APPROVED)]
        return tickets.take_together(session, approved, AUTOMATIC) if approved else []


def make_plan(stream: str, targets: Targets) -> tuple[Plan, dict[int, list[int]]]:
    """The repairs that the targets ask for, and shard -> catalog keys of their records. Changes nothing."""
    with database.transaction() as session:
        found = find_records(session, targets)
        return plan_for(session, stream, {shard_id: len(keys) for shard_id, keys in found.items()}), found


def plan_for(session: Session, stream: str, leaving: Mapping[int, int], begun: Sequence[Repair] = ()) -> Plan:
    """The repairs of all that these shards shape when so many of their rows go, and of what a run had `begun`."""
    reached = {*lineage.closure(session, leaving), *(repair.adapter_id for repair in begun)}
    closure = adapter_rows.get_adapters(session, sorted(reached, key=lineage.by_number))
    alive = [a for a in closure if a.state != AdapterState.ERASED and a.stream == stream]
    shards = contents.shards(session, {*leaving, *(i for a in alive for i in a.shard_ids)})
    rows = {s.shard_id: s.rows - leaving.get(s.shard_id, 0) for s in shards}
    parents = adapter_rows.get_adapters(session, sorted({p for a in alive for p in a.parent_ids}))
    erased = [parent.adapter_id for parent in parents if parent.state == AdapterState.ERASED]
    return plan_repairs(sorted(leaving), alive, rows, begun, erased)


@step("resolve-{together[0].ticket_id}")
def resolve(stream: Stream, together: Sequence[Ticket]) -> Detail:
    """Closure, plan, and the keys of every blob that is about to be replaced: before anything changes."""

    def work() -> Detail:
        refused = _batches_that_refused(stream, together)
        with database.transaction() as session:
            named = {t.ticket_id: tickets.targets_of(session, t.ticket_id) for t in together}
            found = {ticket_id: find_records(session, targets) for ticket_id, targets in named.items()}
            leaving = find_records(session, [target for targets in named.values() for target in targets])
            plan = plan_for(session, stream.name, {shard_id: len(keys) for shard_id, keys in leaving.items()})
            touched = contents.shards(session, leaving)
            batch_ids = sorted({shard.batch_id for shard in touched} | refused)
            owners = [f"adapter:{repair.adapter_id}" for repair in plan.repairs]
            owners += [shard.node for shard in touched] + [f"batch:{batch_id}" for batch_id in batch_ids]
            objects = ownership.objects_of(session, owners)
            actions = {repair.adapter_id: repair.action for repair in plan.repairs}
            digests = [stored.sha256 for stored in objects if is_shaped(stored, actions, leaving)]
            suppression.condemn(session, stream.name, together[0].ticket_id, digests)
            for ticket_id, reached in found.items():
                tickets.set_records(session, ticket_id, sum(map(len, reached.values())))
        for ticket_id, reached in found.items():
            keep_markers(stream, ticket_id, touched, [key for keys in reached.values() for key in keys])
        hold_for_monitors(stream, touched, {t: [key for keys in r.values() for key in keys] for t, r in found.items()})
        return {
            "tickets": {ticket_id: _counts(reached) for ticket_id, reached in found.items()},
            "shards": [shard.shard_id for shard in touched],
            "batches": batch_ids,
            "records": sum(map(len, leaving.values())),
            "repairs": [asdict(repair) for repair in plan.repairs],
            "before": [asdict(stored) for stored in objects],
        }

    detail = once(together, "resolve", work)
    say(f"  closure: {detail['records']} records, shards {detail['shards']}, {len(detail['repairs'])} adapters")
    return detail


def _batches_that_refused(stream: Stream, together: Sequence[Ticket]) -> set[str]:
    """Batches whose list of refused rows names a target: such a row is no record, but it lies in the source object.

    A discarded batch keeps no list: the purge looks through its source object whomever a ticket names."""
    with database.transaction() as session:
        targets = set(tickets.targets_of(session, *(ticket.ticket_id for ticket in together)))
        listed = [batch for batch in catalog.batches(session, stream.name, *LISTED) if batch.quarantined]
    return {batch.batch_id for batch in listed if any(is_refused(row, targets) for row in load_quarantine(batch))}


def _counts(reached: Mapping[int, Sequence[int]]) -> Detail:
    return {"records": sum(map(len, reached.values())), "shards": sorted(reached)}


@step("quarantine-{together[0].ticket_id}")
def quarantine(stream: Stream, together: Sequence[Ticket], resolved: Detail) -> Detail:
    """The versions that the tickets withdrew as they took effect; once more, for what came past `open_ticket`."""

    def work() -> Detail:
        with database.transaction() as session:
            since = versions_shaped_by(session, stream.name, resolved["shards"])
            tainted = sorted(set(since) - versions.stand_ins(session, stream.name))
            withdraw_versions(session, stream.name, tainted, f"ticket {together[0].ticket_id}")
        mirror_aliases(stream.name)
        return {"versions": tainted}

    detail = once(together, "quarantine", work)
    say(f"  quarantined versions: {detail['versions'] or 'none'}; no alias names one of them")
    return detail
