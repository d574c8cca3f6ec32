"""The release gate: nothing that suppressed records shaped may be registered or promoted.

It asks twice, in two ways that fail apart: whether the lineage still leads from a suppressed record to the manifest,
and whether the manifest names a blob that a ticket condemned. The second holds where the first has lost its trace: when
the records are gone from the catalog and an artifact was not rebuilt.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy.orm import Session

from infra import database
from registry import catalog, lineage, ownership, suppression, tickets
from registry.errors import StaleEpochError, SuppressedRecordError
from registry.records import Adapter, TicketState
from tasks.exclusion import naming, still_alone
from tasks.identity import catalog_key
from tasks.manifests import Manifest, digests_in, without


def check_release(session: Session, manifest: Manifest, what: str) -> None:
    """Raise when a ticket took effect since the work began, or what its records shaped is in the manifest.

    No ticket takes effect between this question and the end of the caller's transaction.
    """
    stream = manifest["stream"]["name"]
    check_epoch(session, stream, manifest["epoch"], what)
    tainted = tainted_shards(session, stream)
    served = {shard["shard_id"] for shard in manifest["shards"]}
    served |= {part["shard_id"] for adapter in manifest["adapters"] for part in adapter["statistics"]}
    named = {adapter["adapter_id"] for adapter in (*manifest["adapters"], *manifest["waiting"])}
    reached = {*lineage.closure(session, tainted), *_unproven(session, stream)} & named
    if served & tainted or reached:
        raise SuppressedRecordError(
            f"{what} rests on records that a deletion ticket names (shards {sorted(served & tainted)}, adapters "
            f"{sorted(reached)}); finish the open tickets of stream {stream!r} first, then run again"
        )
    condemned = suppression.condemned(session, stream, digests_in(manifest))
    if condemned:
        raise SuppressedRecordError(
            f"{what} names {len(condemned)} blobs that deleted records shaped, the first {min(condemned)}; reopen the "
            f"ticket of stream {stream!r} that is an exception, or promote a later version"
        )


def clean_part(manifest: Manifest) -> Manifest:
    """What of the manifest the gate lets through now."""
    stream = manifest["stream"]["name"]
    with database.transaction() as session:
        tainted = tainted_shards(session, stream)
        reached = {*lineage.closure(session, tainted), *_unproven(session, stream)}
        return without(manifest, suppression.condemned(session, stream, digests_in(manifest)), tainted, reached)


def _unproven(session: Session, stream: str) -> set[str]:
    """Adapters that a ticket in progress reaches, until each was compared with one made without the records."""
    leads = {t.lead or t.ticket_id for t in tickets.tickets(session, stream, TicketState.IN_PROGRESS)}
    found = set[str]()
    for lead in leads:
        resolved = tickets.done_step(session, lead, "resolve")
        if resolved is not None and tickets.done_step(session, lead, "compare") is None:
            found |= {repair["adapter_id"] for repair in resolved["repairs"]}
    return found


def begin_work(stream: str, shard_ids: Collection[int], starting_from: Sequence[Adapter] = ()) -> int:
    """The deletion epoch at which work on these shards begins: whoever stores its result gives it to `check_epoch`.

    Raises SuppressedRecordError while a ticket has rows to drop from one of them, or one of the adapters whose weights
    the work starts from to rebuild."""
    with database.transaction() as session:
        still_alone(session, stream)
        epoch = catalog.stream_epoch(session, stream, lock=True)
        tainted = tainted_shards(session, stream) & set(shard_ids)
        refuse_condemned(session, stream, starting_from)
    if tainted:
        raise SuppressedRecordError(
            f"shards {sorted(tainted)} hold records that a deletion ticket names; finish the open tickets of stream "
            f"{stream!r} first, then run again"
        )
    return epoch


def refuse_condemned(session: Session, stream: str, adapters: Sequence[Adapter]) -> None:
    """Raise SuppressedRecordError where a ticket has to rebuild one of them or to compare it: what is made of its
    weights has other bytes, which nobody condemned."""
    stored = ownership.objects_of(session, [adapter.node for adapter in adapters])
    weights = {each.sha256: each.owner.removeprefix("adapter:") for each in stored if each.kind == "weights"}
    reached = {weights[sha256] for sha256 in suppression.condemned(session, stream, weights)}
    reached |= _unproven(session, stream) & {adapter.adapter_id for adapter in adapters}
    if reached:
        raise SuppressedRecordError(
            f"deleted records shaped the adapters {sorted(reached)}, which are not rebuilt and compared; finish the "
            f"open tickets of stream {stream!r} first, reopen those that are exceptions, then try again"
        )


def check_epoch(session: Session, stream: str, started: int | None, what: str) -> None:
    """Raise StaleEpochError where a ticket took effect since; none does before the end of this transaction.

    None is for the deletion itself, which holds the stream. Who lost the stream meanwhile gets OvertakenError."""
    still_alone(session, stream)
    if started is None:
        return
    current = catalog.stream_epoch(session, stream, lock=True)
    if started != current:
        raise StaleEpochError(what, started, current)


@contextmanager
def storing(stream: str, epoch: int | None, what: str) -> Iterator[None]:
    """Hold what the block writes until it is named: a worker that trains does not hold the stream.

    Raises StaleEpochError where a ticket took effect since `epoch`: its purge may be over, and would miss what is
    written now. One that takes effect inside the block purges after it."""
    with naming(stream):
        with database.transaction() as session:
            check_epoch(session, stream, epoch, what)
        yield


def tainted_shards(session: Session, stream: str) -> set[int]:
    """Shards that still hold a suppressed record."""
    return set().union(*_suppressed_records(session, stream))


def suppressed_keys(session: Session, stream: str) -> set[int]:
    """Keys of the suppressed records that the catalog still holds."""
    return {key for by_shard in _suppressed_records(session, stream) for keys in by_shard.values() for key in keys}


def _suppressed_records(session: Session, stream: str) -> list[dict[int, list[int]]]:
    targets = suppression.suppressed(session, stream)
    return [
        lineage.records_of_subjects(session, sorted(map(catalog_key, targets["subject"]))),
        lineage.records_by_key(session, sorted(map(catalog_key, targets["record"]))),
    ]
