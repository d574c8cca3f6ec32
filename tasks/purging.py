"""The last steps of a deletion: remove every copy of what was replaced, then look for what might be left."""

from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from hashlib import sha256
from typing import ParamSpec, TypeVar

from infra import database, storage, tracking
from infra.settings import settings
from registry import artifacts, catalog, model_purge, ownership, tickets, versions
from registry.errors import PurgeError, SourceError, UnknownIdError
from registry.records import BatchState, Delivery, Ticket, VersionState
from registry.stream import Stream
from tasks import blobs, source
from tasks.exclusion import naming, taking_in
from tasks.formats import without_rows
from tasks.garbage import collect_garbage
from tasks.markers import load_markers, texts_of
from tasks.narration import say
from tasks.orphans import orphans_of, purge_run
from tasks.reading import named_rows
from tasks.retries import step
from tasks.saga import Detail, once

P = ParamSpec("P")
R = TypeVar("R")

TRIES = 3
"""How often an object is read that somebody delivers anew before it is rewritten."""


@step("purge-{together[0].ticket_id}")
def purge(stream: Stream, together: Sequence[Ticket], resolved: Detail, quarantined: Detail) -> Detail:
    """Remove quarantined versions from MLflow and the catalog, dead blobs from S3, the rows from our source objects.

    What a store refuses to give up (a legal hold, a retention date) is noted; the rest goes all the same.
    """

    def work() -> Detail:
        refused: list[str] = []
        removed = [_attempt(refused, _erase_version, stream, version) for version in quarantined["versions"]]
        with naming(stream.name):
            removed.append(_attempt(refused, _purge_orphans, stream))
            removed.append(_attempt(refused, _purge_garbage, stream))
        removed.append(_attempt(refused, _purge_traces, stream, together))
        targets = targets_of(together)
        holding = source_batches(stream, resolved)
        rewritten = [_attempt(refused, _rewrite_source, stream, targets, batch_id) for batch_id in holding]
        _compact()
        return {
            "mlflow_versions": len(quarantined["versions"]),
            "mlflow_rows": sum(each[0] for each in removed if each),
            "objects": sum(each[1] for each in removed if each),
            "source_objects_rewritten": rewritten.count(True),
            "source_objects_left_to_owner": rewritten.count(False),
            "refused": refused,
        }

    detail = once(together, "purge", work)
    say(f"  purged {detail['objects']} object versions, {detail['mlflow_versions']} model versions")
    for reason in detail["refused"]:
        say(f"  REFUSED: {reason}")
    return detail


def _attempt(refused: list[str], work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
    """The work's answer; None, with the reason noted, where a store kept what should go."""
    try:
        return work(*args, **kwargs)
    except PurgeError as error:
        refused.append(str(error))
        return None


def targets_of(together: Sequence[Ticket]) -> set[tuple[str, str]]:
    with database.transaction() as session:
        return set(tickets.targets_of(session, *(ticket.ticket_id for ticket in together)))


def _erase_version(stream: Stream, version: int) -> tuple[int, int]:
    """Remove a version from MLflow, then from the catalog, which keeps its number and state."""
    rows, objects = _purge_version(stream, version)
    with database.transaction() as session:
        ownership.drop_objects(session, f"version:{stream.name}:{version}")
        versions.set_state(session, stream.name, version, VersionState.ERASED)
    return rows, objects


def _purge_garbage(stream: Stream) -> tuple[int, int]:
    """Dead blobs, and uploads that never ended: no listing of versions shows their parts, no sweep can read them."""
    s3, bucket = storage.s3(), settings().artifact_bucket
    uploads = artifacts.list_uploads(s3, bucket, blobs.stream_prefix(stream.name))
    artifacts.abort_uploads(s3, bucket, uploads)
    return 0, len(uploads) + len(collect_garbage(stream.name))


def _purge_orphans(stream: Stream) -> tuple[int, int]:
    """Remove runs that no version of the catalog names: their model folders may name what was deleted."""
    removed = [purge_run(stream.name, run_id) for run_id in orphans_of(stream.name, only_ours=False)]
    return sum(rows for rows, _ in removed), sum(objects for _, objects in removed)


def _purge_traces(stream: Stream, together: Sequence[Ticket]) -> tuple[int, int]:
    """Remove traces of answers whose request is one of the records: whoever traces the registered model keeps them."""
    texts = texts_of(marker for ticket in together for marker in load_markers(ticket.ticket_id))
    if not texts:
        return 0, 0
    experiment = tracking.experiment(tracking.prepare_tracking(), stream.name)
    s3, bucket = storage.s3(), settings().artifact_bucket
    with tracking.backend() as connection:
        removed = model_purge.purge_traces(connection, s3, bucket, experiment, texts)
    return sum(removed.rows.values()), len(removed.objects)


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


def source_batches(stream: Stream, resolved: Detail) -> list[str]:
    """Whose source objects may hold the records: those that were learned from, and what was discarded by hand."""
    with database.transaction() as session:
        discarded = catalog.batches(session, stream.name, BatchState.DISCARDED)
    return [*resolved["batches"], *(batch.batch_id for batch in discarded)]


def _rewrite_source(stream: Stream, targets: Set[tuple[str, str]], batch_id: str) -> bool:
    """Write a batch's source object without the targets, if it lies in our inbox bucket; its old versions go.

    An object elsewhere belongs to its owner: the suppression list keeps its rows out, and the certificate says so.
    Raises PurgeError for one that cannot be read, or that is delivered anew as often as it is read.
    """
    with database.transaction() as session:
        uri = catalog.get_batch(session, batch_id).uri
    bucket, key = source.split_s3(uri) if uri.startswith("s3://") else ("", "")
    if bucket != settings().inbox_bucket:
        return False
    with taking_in(stream.name):
        for _ in range(TRIES):
            if not _is_there(bucket, key):
                # whoever delivered it took it away; its rows lie under the marker
                artifacts.purge_keys(storage.s3(), bucket, [key])
                return True
            if _rewrite_current(stream, targets, uri):
                _purge_older(bucket, key)
                uploads = artifacts.list_uploads(storage.s3(), bucket, key)
                artifacts.abort_uploads(storage.s3(), bucket, [upload for upload in uploads if upload.key == key])
                return True
    raise PurgeError(f"object {uri} was delivered anew each time it was read; wait until it stays, then purge again")


def _rewrite_current(stream: Stream, targets: Set[tuple[str, str]], uri: str) -> bool:
    """Write the object that a reader gets without the targets; False where another was put in its place meanwhile.

    What was taken in is known afterwards too; what came under the same key since stays new, for the next run to learn.
    """
    try:
        delivery, data = source.fetch(uri, "")
        with database.transaction() as session:
            batch_id = catalog.batch_of(session, stream.name, delivery.digest)
        # of what was taken in, a row that cannot be read may be anybody's: it was never learned from, and goes as well
        named = named_rows(data, uri, stream, by_kind(targets), or_unreadable=batch_id is not None)
    except SourceError as error:
        raise PurgeError(f"{error}, or delete it: nobody can say whose rows it holds") from None
    tag: str | None = delivery.tag
    if any(named):
        data = without_rows(data, uri, named)
        if batch_id is not None:
            # known before it lies there: a crash in between must not make the rest of the batch a new batch
            _know(stream, batch_id, uri, data, "")
        tag = source.replace_object(delivery, data)
    if batch_id is not None and tag is not None:
        _know(stream, batch_id, uri, data, tag)
    return tag is not None


def _is_there(bucket: str, key: str) -> bool:
    """Whether a reader gets the object: neither gone nor under a delete marker."""
    return any(version.key == key for version in artifacts.list_current(storage.s3(), bucket, key))


def _purge_older(bucket: str, key: str) -> None:
    """Remove every version of an object but the current one, also those that an interrupted purge left."""
    s3 = storage.s3()
    before = artifacts.list_versions(s3, bucket, key)
    # asked last: what is delivered after the listing is not in it
    current = s3.head_object(Bucket=bucket, Key=key)["VersionId"]
    for version in before:
        if version.key == key and version.version_id != current:
            artifacts.delete_versions(s3, bucket, [version])


def _know(stream: Stream, batch_id: str, uri: str, data: bytes, tag: str) -> None:
    delivery = Delivery(uri, sha256(data).hexdigest(), len(data), tag)
    with database.transaction() as session:
        catalog.add_delivery(session, stream.name, delivery, batch_id)


def by_kind(targets: Set[tuple[str, str]]) -> dict[str, set[str]]:
    return {kind: {keyed for k, keyed in targets if k == kind} for kind in ("record", "subject")}


def _compact() -> None:
    """Make deleted bytes unreadable on disk, in the databases and in the store, where they are ours."""
    database.compact()
    tracking.compact()
    storage.compact()
