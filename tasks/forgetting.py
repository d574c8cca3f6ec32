"""The first steps of a deletion: what the ticket reaches, and taking it out of service. Each is noted on the ticket."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, lineage, tickets, versions
from registry.records import AdapterState, Ticket, TicketState, VersionState
from registry.stream import Stream
from tasks.markers import keep_markers
from tasks.narration import say
from tasks.policies.forgetting import Plan, plan_repairs
from tasks.promotion import withdraw_versions
from tasks.retries import step
from tasks.saga import Detail, once
from tasks.tickets import count_records


@step("begin-{ticket_id}")
def begin(ticket_id: str) -> tuple[Ticket, Stream]:
    with database.transaction() as session:
        ticket = tickets.get_ticket(session, ticket_id)
        if ticket.state != TicketState.COMPLETE:
            tickets.set_ticket_state(session, ticket_id, TicketState.IN_PROGRESS)
        return ticket, catalog.get_stream(session, ticket.stream)


def make_plan(stream: str, targets: Sequence[tuple[str, str]]) -> tuple[Plan, dict[int, list[int]]]:
    """The repairs that the targets ask for, and shard -> catalog keys of their records. Changes nothing."""
    found = count_records(targets)
    return plan_for(stream, {shard_id: len(keys) for shard_id, keys in found.items()}), found


def plan_for(stream: str, leaving: Mapping[int, int]) -> Plan:
    """The repairs of all that these shards shape when so many of their rows go."""
    with database.transaction() as session:
        closure = [adapter_rows.get_adapter(session, a) for a in lineage.closure(session, leaving)]
        alive = [a for a in closure if a.state != AdapterState.ERASED and a.stream == stream]
        shards = catalog.shards(session, {*leaving, *(i for a in alive for i in a.shard_ids)})
    return plan_repairs(sorted(leaving), alive, {s.shard_id: s.rows - leaving.get(s.shard_id, 0) for s in shards})


@step("resolve-{ticket.ticket_id}")
def resolve(stream: Stream, ticket: Ticket) -> Detail:
    """Closure, plan, and the keys of every blob that is about to be replaced: before anything changes."""

    def work() -> Detail:
        with database.transaction() as session:
            targets = tickets.targets_of(session, ticket.ticket_id)
        plan, found = make_plan(stream.name, targets)
        with database.transaction() as session:
            touched = catalog.shards(session, found)
            batch_ids = sorted({shard.batch_id for shard in touched})
            owners = [f"adapter:{repair.adapter_id}" for repair in plan.repairs]
            owners += [shard.node for shard in touched] + [f"batch:{batch_id}" for batch_id in batch_ids]
            objects = catalog.objects_of(session, owners)
            tickets.set_records(session, ticket.ticket_id, sum(map(len, found.values())))
        keep_markers(stream, ticket, touched, [key for keys in found.values() for key in keys])
        return {
            "shards": [shard.shard_id for shard in touched],
            "batches": batch_ids,
            "records": sum(map(len, found.values())),
            "repairs": [asdict(repair) for repair in plan.repairs],
            "before": [asdict(stored) for stored in objects],
        }

    detail = once(ticket.ticket_id, "resolve", work)
    say(f"  closure: {detail['records']} records, shards {detail['shards']}, {len(detail['repairs'])} adapters")
    return detail


@step("quarantine-{ticket.ticket_id}")
def quarantine(stream: Stream, ticket: Ticket, resolved: Detail) -> Detail:
    """Stop serving every version that the shards shaped: those registered since the first of their batches."""

    def work() -> Detail:
        with database.transaction() as session:
            causes = [versions.find_by_cause(session, stream.name, f"batch:{b}") for b in resolved["batches"]]
            # quarantined ones too: a run that broke off after the withdrawal has to find them again
            known = versions.versions(session, stream.name, VersionState.READY, VersionState.QUARANTINED)
        firsts = [version.version for version in causes if version is not None]
        tainted = [version.version for version in known if firsts and version.version >= min(firsts)]
        withdraw_versions(stream, tainted, f"ticket {ticket.ticket_id}")
        return {"versions": tainted}

    detail = once(ticket.ticket_id, "quarantine", work)
    say(f"  quarantined versions: {detail['versions'] or 'none'}; no alias names one of them")
    return detail
