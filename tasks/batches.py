"""Discover new objects, read one as a batch, run the frozen prefix for it."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from sqlalchemy.orm import Session

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, contents, decision_log, holding, ownership, suppression
from registry.errors import SourceError, StaleEpochError
from registry.records import AdapterState, Batch, BatchState, Decision, DecisionKind, Delivery, Shard
from registry.stream import Stream
from tasks import source, tickets
from tasks.backbones import adapter_spec, open_frozen, require_positions
from tasks.events import BATCH_HELD, announce
from tasks.exclusion import naming, still_alone, taking_in
from tasks.identity import catalog_key
from tasks.inbox import is_ours
from tasks.local_copies import follow_deletions
from tasks.narration import say
from tasks.policies.expansion import lacks_rows
from tasks.prefix_cache import encode_missing
from tasks.reading import Reading, named_rows, read_rows, rows_of
from tasks.retries import step
from tasks.rows import Row, count_rows
from tasks.runs import refuse_after_losses
from tasks.shards import fit_shard, load_rows, store_quarantine, store_rows


@step("open-{stream.name}")
def open_stream(stream: Stream) -> None:
    """Check that catalog and code fit, that the backbone opens and is as deep as the adapters ask, and that the source
    lies outside the home, and enter the stream in the catalog, with the tickets that took effect under its name: the
    catalog may be older than the stream, and the source may still hold whom they name."""
    refuse_after_losses()
    database.check_revision()
    follow_deletions(stream.name)
    adapter_spec(stream)  # what does not fit the backbone cannot be corrected once it is entered
    digest = open_frozen(stream).digest
    with database.transaction() as session:
        is_new = stream.name not in catalog.stream_names(session)
        if not catalog.count_batches(session, stream.name):
            require_positions(stream)
        if is_new or catalog.get_stream(session, stream.name).source != stream.source:
            source.refuse_in_home(stream.source)
        catalog.save_stream(session, stream, digest)
        replayed = tickets.replay(session, stream.name, tickets.AUTOMATIC) if is_new else []
    for ticket_id in replayed:
        say(f"ticket {ticket_id} is in effect; go on with it: deciduous erase {stream.name} --ticket {ticket_id}")


@step("discover-{stream.name}")
def discover(stream: Stream) -> list[tuple[str, str]]:
    """(uri, tag) of the source's objects that the ledger does not know, in name order."""
    with database.transaction() as session:
        tags = catalog.known_tags(session, stream.name)
    found = source.list_objects(stream.source)
    new = [(uri, tag) for uri, tag in found if tag not in tags]
    say(f"{stream.name}: {len(new)} new of {len(found)} objects in {stream.source}")
    return new


@step("unfinished-{stream.name}")
def unfinished_batches(stream: Stream) -> list[Batch]:
    """Batches that an interrupted run read and did not finish, brought to the stream's deletion epoch.

    A ticket that came in between has removed its rows from them, or the release gate will refuse their version. What it
    emptied is finished; what it left without the adapter or the rows that were decided on is decided again.
    """
    with database.transaction() as session:
        catalog.renew_epochs(session, stream.name)
        read = catalog.batches(session, stream.name, BatchState.READ)
        left = [replace(batch, shards=tuple(shard for shard in batch.shards if shard.rows)) for batch in read]
        for batch in left:
            if not batch.shards:
                catalog.set_batch_state(session, batch.batch_id, BatchState.DONE, holding.EMPTIED)
            for shard in batch.shards:
                _check_decision(session, stream, shard)
    return [batch for batch in left if batch.shards]


def _check_decision(session: Session, stream: Stream, shard: Shard) -> None:
    """Drop a decision that cannot be carried out any more. One that was carried out is kept: the ticket has rebuilt its
    adapter."""
    known = decision_log.find_decision(session, shard.shard_id)
    if known is None:
        return
    adapter = adapter_rows.find_adapter(session, known.adapter_id or "")
    erased = adapter is not None and adapter.state == AdapterState.ERASED
    carried_out = adapter is not None and shard.shard_id in (*adapter.shard_ids, *adapter.serves)
    small = lacks_rows(DecisionKind(known.kind), shard.labelled, shard.held_out, stream.shift.min_rows)
    if erased or (small and not carried_out):
        decision_log.drop_decision(session, shard.shard_id)
        say(f"  {shard.batch_name}: decided again, its adapter or too many of its rows are gone")


@step("read-{uri}")
def read_batch(stream: Stream, uri: str, tag: str) -> Batch | None:
    """Validate an object's rows and enter them as a batch; None for content that was taken in before.

    Raises SourceError when the object cannot be read or has no good row; nothing of it is kept then.
    """
    with taking_in(stream.name):  # held from here on: a purge may be rewriting the object
        delivery, data = source.fetch(uri, tag)
        return _take_in(stream, delivery, data)


def _take_in(stream: Stream, delivery: Delivery, data: bytes) -> Batch | None:
    uri = delivery.uri
    with database.transaction() as session:
        epoch = catalog.stream_epoch(session, stream.name)
        known = catalog.batch_of(session, stream.name, delivery.digest)
        suppressed = suppression.suppressed(session, stream.name)
    if known is not None:
        kept_out = named_rows(data, uri, stream, suppressed).count(True)
        with database.transaction() as session:
            catalog.add_delivery(session, stream.name, delivery, known)
            catalog.add_kept_out(session, known, kept_out)
        say(f"{source.batch_name(uri)}: this content was taken in before; nothing to do")
        return None
    emptied = is_ours(uri) and any(suppressed.values()) and next(rows_of(data, uri, None), None) is None
    reading = Reading([], [], 0) if emptied else read_rows(data, uri, stream, _seen, suppressed)
    if not reading.rows and not reading.quarantined and (reading.suppressed or emptied):
        _enter_nothing(stream, delivery, reading, epoch)
        return None
    if not reading.rows:
        raise SourceError(
            f"object {uri} has no good row ({_reasons(reading) or 'it is empty'}); correct and deliver again"
        )
    with naming(stream.name):
        return _enter(stream, delivery, reading, epoch)


def _seen(keyed: list[str]) -> set[str]:
    with database.transaction() as session:
        known = contents.known_records(session, [catalog_key(k) for k in keyed])
    return {k for k in keyed if catalog_key(k) in known}


def _reasons(reading: Reading) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reading.reasons.items()))


def _enter_nothing(stream: Stream, delivery: Delivery, reading: Reading, epoch: int) -> None:
    """Know an object of which deletions leave no row, which the next run would read and refuse again; those that a
    ticket emptied before this catalog was restored, or begun anew, too."""
    dropped = reading.suppressed
    with database.transaction() as session:
        batch = catalog.add_batch(session, _batch(stream, delivery, reading, {}, epoch), delivery, {})
        reason = f"its {dropped} rows are suppressed" if dropped else "it has no row; a deletion may have taken them"
        catalog.set_batch_state(session, batch.batch_id, BatchState.DISCARDED, reason)
    say(f"{batch.name}: nothing to learn, {reason}")


def _enter(stream: Stream, delivery: Delivery, reading: Reading, epoch: int) -> Batch:
    """Ledger, records and rows in one transaction; the rows' blobs are written before it commits.

    Raises StaleEpochError where a ticket took effect since the suppression list was read."""
    groups = sorted({row.group for row in reading.rows})
    parts = {group: [row for row in reading.rows if row.group == group] for group in groups}
    with database.transaction() as session:
        current = catalog.stream_epoch(session, stream.name, lock=True)
        if current != epoch:
            raise StaleEpochError(f"reading {delivery.uri}", epoch, current)
        batch = catalog.add_batch(session, _batch(stream, delivery, reading, parts, epoch), delivery, reading.reasons)
        for shard in batch.shards:
            contents.add_records(session, [_record(row, shard) for row in parts[shard.group]])
            ownership.put_object(session, store_rows(stream, shard, parts[shard.group]))
        ownership.put_object(session, store_quarantine(stream, batch, reading.quarantined))
    bad = f", {batch.quarantined} quarantined ({_reasons(reading)})" if batch.quarantined else ""
    dropped = f", {batch.suppressed} suppressed" if batch.suppressed else ""
    say(f"{batch.name}: {batch.rows} rows read{bad}{dropped}")
    return batch


def _batch(stream: Stream, delivery: Delivery, reading: Reading, parts: dict[str, list[Row]], epoch: int) -> Batch:
    return Batch(
        batch_id=sha256(f"{stream.name}\x1f{delivery.digest}".encode()).hexdigest()[:12],
        stream=stream.name,
        name=source.batch_name(delivery.uri),
        ordinal=-1,
        uri=delivery.uri,
        state=BatchState.READ,
        rows=len(reading.rows),
        quarantined=len(reading.quarantined),
        suppressed=reading.suppressed,
        epoch=epoch,
        shards=tuple(_shard(group, rows) for group, rows in parts.items()),
    )


def _shard(group: str, rows: list[Row]) -> Shard:
    total, held, labelled = count_rows(rows)
    return Shard(shard_id=-1, batch_id="", batch_name="", group=group, rows=total, held_out=held, labelled=labelled)


def _record(row: Row, shard: Shard) -> dict[str, int]:
    return {
        "key": catalog_key(row.record),
        "subject": catalog_key(row.subject),
        "shard_id": shard.shard_id,
    }


@step("encode-{batch.name}")
def encode_batch(stream: Stream, batch: Batch) -> None:
    """Run the frozen prefix once per record, and fit the shards' closed forms on its states."""
    say(f"  {batch.name}: running the frozen prefix for {batch.rows_left} rows", progress=True)
    for shard in batch.shards:
        encode_missing(stream, load_rows(shard))
        fit_shard(stream, shard)


@step("hold-{batch.name}")
def hold_batch(stream: Stream, batch: Batch, reason: str) -> None:
    """Leave the model as it is; a person looks at the batch."""
    with database.transaction() as session:
        still_alone(session, stream.name)
        catalog.set_batch_state(session, batch.batch_id, BatchState.HELD, reason)
    _tell_held(stream, batch, reason)


def _tell_held(stream: Stream, batch: Batch, reason: str) -> None:
    announce(BATCH_HELD, stream.name, "batch", batch.batch_id, batch=batch.name, reason=reason)
    say(f"{stream.name}: {batch.name} is held until `deciduous rejudge {batch.batch_id}` or `discard`: {reason}")


@step("finish-{batch.name}")
def finish_batch(stream: Stream, batch: Batch, decisions: Sequence[Decision]) -> None:
    """The last word: a batch that is not finished is taken up again by the next run.

    Groups of it that are held become a held batch of their own, which can be judged again without the others."""
    pairs = list(zip(batch.shards, decisions, strict=True))
    held = {shard.shard_id: d.reason for shard, d in pairs if d.kind == DecisionKind.HOLD}
    reason = next(iter(held.values()), "")
    with taking_in(stream.name), database.transaction() as session:
        still_alone(session, stream.name)
        rest = holding.set_aside(session, batch.batch_id, held, reason) if held else None
        if rest is not None:
            ownership.put_object(session, store_quarantine(stream, rest, []))
        catalog.set_batch_state(session, batch.batch_id, BatchState.DONE)
    if rest is not None:
        _tell_held(stream, rest, reason)
