"""What exists, where it came from, why it was decided so: answers for the command line, from the catalog alone."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sqlalchemy.orm import Session

from infra import database
from registry import adapters, catalog, contents, decision_log, lineage, ownership, tickets, versions
from registry.errors import UnknownIdError
from registry.records import Batch, BatchState

Answer = dict[str, Any]

KINDS = ("streams", "batches", "adapters", "versions", "decisions", "tickets", "aliases")


def status(stream: str | None = None) -> list[Answer]:
    """One line per stream: how far it is, what serves, what waits for a person."""
    with database.transaction() as session:
        names = catalog.stream_names(session) if stream is None else [stream]
        return [_status_of(session, name) for name in names]


def _status_of(session: Session, name: str) -> Answer:
    epoch = catalog.stream_epoch(session, name)
    waiting = catalog.batches(session, name, BatchState.READ, BatchState.HELD)
    champion = versions.alias_of(session, name, versions.CHAMPION)
    return {
        "stream": name,
        "batches": catalog.count_batches(session, name),
        "unfinished": [b.name for b in waiting if b.state == BatchState.READ],
        "held": [b.name for b in waiting if b.state == BatchState.HELD],
        "adapters": adapters.count_states(session, name),
        "champion": champion,
        "challenger": versions.alias_of(session, name, versions.CHALLENGER),
        "accuracy": versions.get_version(session, name, champion).accuracy if champion else None,
        "versions": versions.count_versions(session, name),
        "deletion_epoch": epoch,
        "open_tickets": [t.ticket_id for t in tickets.tickets(session, name, *tickets.OPEN)],
    }


def listing(kind: str, stream: str | None) -> list[Answer]:
    """Rows of one kind. Raises UnknownIdError naming the kinds there are."""
    if kind not in KINDS:
        raise UnknownIdError("kind", kind, ", ".join(KINDS))
    with database.transaction() as session:
        names = catalog.stream_names(session) if stream is None else [stream]
        if kind == "streams":
            return [{"stream": name, **_stream_line(session, name)} for name in names]
        for name in names:
            catalog.get_stream(session, name)
        return [row for name in names for row in _LISTINGS[kind](session, name)]


def _stream_line(session: Session, name: str) -> Answer:
    stream = catalog.get_stream(session, name)
    return {"task": stream.task.value, "backbone": stream.backbone, "source": stream.source}


def _batches(session: Session, name: str) -> list[Answer]:
    keys = ("batch_id", "name", "state", "rows", "delivered", "quarantined", "suppressed", "uri")
    found = [asdict(batch) | _rows_of(batch) for batch in catalog.batches(session, name)]
    return [{key: batch[key] for key in keys} for batch in found]


def _rows_of(batch: Batch) -> Answer:
    """What is held of it, and what came: deletions take rows out of a batch that stays."""
    return {"rows": batch.rows_left, "delivered": batch.rows}


def _adapters(session: Session, name: str) -> list[Answer]:
    keys = ("adapter_id", "state", "group", "serves", "accuracy", "reason")
    return [{key: getattr(adapter, key) for key in keys} for adapter in adapters.adapters(session, name)]


def _versions(session: Session, name: str) -> list[Answer]:
    found = versions.versions(session, name)
    return [{"version": v.version, "state": v.state, "accuracy": v.accuracy, "reason": v.reason} for v in found]


def _decisions(session: Session, name: str) -> list[Answer]:
    return [
        {
            "decision": d.decision_id,
            "batch_id": d.batch_id,
            "kind": d.kind,
            "adapter_id": d.adapter_id,
            "reason": d.reason,
        }
        for d in decision_log.decisions(session, name)
    ]


def _tickets(session: Session, name: str) -> list[Answer]:
    return [asdict(ticket) for ticket in tickets.tickets(session, name)]


def _aliases(session: Session, name: str) -> list[Answer]:
    return [
        {"at": e.at, "alias": e.alias, "version": e.version, "previous": e.previous, "by": e.by, "reason": e.reason}
        for e in versions.alias_history(session, name)
    ]


_LISTINGS: dict[str, Callable[[Session, str], list[Answer]]] = {
    "batches": _batches,
    "adapters": _adapters,
    "versions": _versions,
    "decisions": _decisions,
    "tickets": _tickets,
    "aliases": _aliases,
}


def describe(id_: str) -> Answer:
    """Everything about one batch, adapter, ticket or version ('STREAM/7'). Raises UnknownIdError, or StateError for a
    name that several batches have."""
    with database.transaction() as session:
        for look in (_describe_version, _describe_adapter, _describe_batch, _describe_ticket):
            try:
                return look(session, id_)
            except UnknownIdError:
                continue
    raise UnknownIdError("batch, adapter, ticket or version (STREAM/7)", id_)


def _describe_version(session: Session, id_: str) -> Answer:
    stream, _, number = id_.partition("/")
    if not (number.isascii() and number.isdigit()):
        raise UnknownIdError("version", id_)
    version = versions.get_version(session, stream, int(number))
    cells = versions.accuracies(session, stream, int(number))
    names = catalog.batch_names(session, cells)
    accuracy = {names[b]: {"accuracy": a, "exact_head": e, "held_out_rows": n} for b, (a, e, n) in cells.items()}
    return {"kind": "version", **asdict(version), "accuracy_by_batch": accuracy}


def _describe_adapter(session: Session, id_: str) -> Answer:
    adapter = adapters.get_adapter(session, id_)
    return {
        "kind": "adapter",
        **asdict(adapter),
        "trained_on": [
            f"{s.batch_name} ({s.group}, {s.rows} rows)" for s in contents.shards(session, adapter.shard_ids)
        ],
        "merged_into": lineage.children(session, id_),
        "objects": [asdict(stored) for stored in ownership.objects_of(session, [adapter.node])],
    }


def _describe_batch(session: Session, id_: str) -> Answer:
    batch = catalog.get_batch(session, catalog.batch_id_of(session, id_))
    found = [decision_log.find_decision(session, shard.shard_id) for shard in batch.shards]
    decided = [row for row in found if row is not None]
    return {
        "kind": "batch",
        **asdict(batch),
        **_rows_of(batch),
        "quarantine": catalog.quarantine_counts(session, batch.batch_id),
        "decisions": [
            {"kind": d.kind, "adapter_id": d.adapter_id, "reason": d.reason, **d.numbers} for d in decided if d
        ],
        "shaped": lineage.closure(session, [shard.shard_id for shard in batch.shards]),
    }


def _describe_ticket(session: Session, id_: str) -> Answer:
    ticket, noted = tickets.get_ticket(session, id_), tickets.steps_of(session, id_)
    steps = [{"step": s.step, "seconds": round(s.seconds, 2), "at": s.finished_at} for s in noted]
    details = {row.step: row.detail for row in noted}
    held = "Q" if ticket.state in tickets.WORKED else None  # withdrawn as it took effect, not finished
    return {
        "kind": "ticket",
        **asdict(ticket),
        "guarantee": details.get("certify", {}).get("guarantee", held),
        "suppressed": details.get("rebuild", {}).get("suppressed", {}),
        "monitors": details.get("monitor", {}).get("tickets", {}).get(id_, {}),
        "steps": steps,
    }
