"""The last steps of a deletion: remove every copy of what was replaced, then look for what might be left."""

from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from infra import database, disk_sweep, storage, tracking
from infra.settings import settings
from registry import artifacts, catalog, model_purge, row_sweep, tickets, versions
from registry.errors import PurgeError, UnknownIdError
from registry.records import Batch, Delivery, Ticket, VersionState
from registry.stream import Stream
from tasks import source
from tasks.garbage import collect_garbage
from tasks.identity import keyed_hash
from tasks.markers import attributable, escrow, load_markers, texts_of
from tasks.narration import say
from tasks.reading import read_table
from tasks.retries import step
from tasks.saga import Detail, once
from tasks.shards import load_rows


@step("purge-{ticket.ticket_id}")
def purge(stream: Stream, ticket: Ticket, resolved: Detail, quarantined: Detail) -> Detail:
    """Remove quarantined versions from MLflow and the catalog, dead blobs from S3, the rows from our source objects."""

    def work() -> Detail:
        removed = [_purge_version(stream, version) for version in quarantined["versions"]]
        with database.transaction() as session:
            for version in quarantined["versions"]:
                catalog.drop_objects(session, f"version:{stream.name}:{version}")
                versions.set_state(session, stream.name, version, VersionState.ERASED)
        gone = collect_garbage(stream.name)
        rewritten = [_rewrite_source(stream, ticket, batch_id) for batch_id in resolved["batches"]]
        _compact()
        return {
            "mlflow_versions": len(removed),
            "mlflow_rows": sum(rows for rows, _ in removed),
            "objects": len(gone) + sum(objects for _, objects in removed),
            "source_objects_rewritten": sum(rewritten),
            "source_objects_left_to_owner": rewritten.count(False),
        }

    detail = once(ticket.ticket_id, "purge", work)
    say(f"  purged {detail['objects']} object versions, {detail['mlflow_versions']} model versions")
    return detail


def _purge_version(stream: Stream, version: int) -> tuple[int, int]:
    """Remove a version and its run, where an interrupted purge has not; returns (rows, object versions) that went."""
    with database.transaction() as session:
        run_id = versions.get_version(session, stream.name, version).run_id
    s3, bucket = storage.s3(), settings().artifact_bucket
    tracking.prepare_tracking()
    removed = []
    with tracking.backend() as connection:
        with suppress(UnknownIdError):
            removed.append(model_purge.delete_version_for_real(connection, s3, bucket, stream.name, version))
        with suppress(UnknownIdError):
            removed.append(model_purge.purge_run(connection, s3, bucket, run_id))
    return sum(sum(p.rows.values()) for p in removed), sum(len(p.objects) for p in removed)


def _rewrite_source(stream: Stream, ticket: Ticket, batch_id: str) -> bool:
    """Write a batch's source object without the targets, if it lies in our inbox bucket; its old versions go.

    An object elsewhere belongs to its owner: the suppression list keeps its rows out, and the certificate says so.
    """
    with database.transaction() as session:
        batch = catalog.get_batch(session, batch_id)
        targets = set(tickets.targets_of(session, ticket.ticket_id))
    bucket, key = source.split_s3(batch.uri) if batch.uri.startswith("s3://") else ("", "")
    if bucket != settings().inbox_bucket or not key.endswith(".parquet"):
        return False
    _, data = source.fetch(batch.uri, "")
    table = read_table(data, batch.uri)
    left = table.filter([not _is_target(stream, fields, targets) for fields in table.to_pylist()])
    if left.num_rows < table.num_rows:
        sink = BytesIO()
        pq.write_table(left, sink)
        data = sink.getvalue()
        # known before it lies there: a crash in between must not make the rest of the batch a new batch
        _know(stream, batch, data, "")
        storage.s3().put_object(Bucket=bucket, Key=key, Body=data)
    _purge_older(bucket, key)
    _know(stream, batch, data, next(tag for uri, tag in source.list_objects(batch.uri) if uri == batch.uri))
    return True


def _purge_older(bucket: str, key: str) -> None:
    """Remove every version of an object but the current one, also those that an interrupted purge left."""
    s3 = storage.s3()
    current = s3.head_object(Bucket=bucket, Key=key)["VersionId"]
    for version in artifacts.list_versions(s3, bucket, key):
        if version.key == key and version.version_id != current:
            gone = s3.delete_objects(
                Bucket=bucket, Delete={"Objects": [{"Key": key, "VersionId": version.version_id}], "Quiet": True}
            )
            if gone.get("Errors"):
                raise PurgeError(
                    f"s3://{bucket}/{key} version {version.version_id} was kept: {gone['Errors'][0].get('Code')}; "
                    "lift its legal hold or retention, then go on with the ticket"
                )


def _know(stream: Stream, batch: Batch, data: bytes, tag: str) -> None:
    delivery = Delivery(batch.uri, sha256(data).hexdigest(), len(data), tag)
    with database.transaction() as session:
        catalog.add_delivery(session, stream.name, delivery, batch.batch_id)


def _is_target(stream: Stream, fields: dict[str, Any], targets: set[tuple[str, str]]) -> bool:
    columns = stream.columns
    named = [("record", fields.get(columns.id)), ("subject", fields.get(columns.subject or columns.id))]
    return any(
        value is not None and (kind, keyed_hash(kind, stream.name, str(value).strip())) in targets
        for kind, value in named
    )


def _compact() -> None:
    """Make deleted bytes unreadable on disk, in the databases and in the store, where they are ours."""
    database.compact()
    tracking.compact()
    storage.compact()


@step("sweep-{ticket.ticket_id}")
def sweep(stream: Stream, ticket: Ticket) -> Detail:
    """Search every store for the deleted records' bytes; afterwards the bytes to search for go as well."""

    def work() -> Detail:
        markers = _markers_to_find(stream, ticket)
        buckets = (settings().artifact_bucket, settings().inbox_bucket)
        hits = {f"bucket {b}": len(artifacts.sweep_bytes(storage.s3(), b, markers)) for b in buckets}
        for found in disk_sweep.sweep_files(_home_entries(), markers):
            store = f"home {found.path.relative_to(settings().home).parts[0]}"
            hits[store] = hits.get(store, 0) + 1
        hits |= _sweep_servers(markers)
        return {"hits": sum(hits.values()), "by_store": hits, "markers": len(markers)}

    detail = once(ticket.ticket_id, "sweep", work)
    escrow(ticket.ticket_id).unlink(missing_ok=True)  # after the note: a repeated sweep needs them
    say(f"  swept for {detail['markers']} markers: {detail['hits']} hits")
    return detail


def _sweep_servers(markers: Sequence[bytes]) -> dict[str, int]:
    """Search the rows of databases that are no file of the home; a hidden state is never in a row."""
    found = {}
    for name, engine in (("catalog", database.engine()), ("mlflow", tracking.backend_engine())):
        if engine.dialect.name != "sqlite":
            with engine.connect() as connection:
                found[f"database {name}"] = len(row_sweep.sweep_rows(connection, texts_of(markers)))
    return found


def _markers_to_find(stream: Stream, ticket: Ticket) -> list[bytes]:
    """Bytes that only the deleted records had; the suppression list keeps the hashes that the ticket itself named."""
    with database.transaction() as session:
        shards = catalog.done_shards(session, stream.name)
        named = {keyed.encode() for _, keyed in tickets.targets_of(session, ticket.ticket_id)}
    retained = (row for shard in shards for row in load_rows(shard))
    return attributable([m for m in load_markers(ticket.ticket_id) if m not in named], retained)


def _home_entries() -> list[Path]:
    return [entry for entry in settings().home.iterdir() if entry.name not in ("escrow", "keys")]
