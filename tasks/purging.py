"""The last steps of a deletion: remove every copy of what was replaced, then look for what might be left."""

from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from hashlib import sha256
from typing import ParamSpec, TypeVar

from infra import database, storage, tracking
from infra.settings import settings
from registry import artifacts, catalog, model_purge, ownership, tickets, versions
from registry.errors import PurgeError, SourceError, UnknownIdError
from registry.records import Delivery, Ticket, VersionState
from registry.stream import Stream
from tasks import blobs, source
from tasks.exclusion import naming, taking_in
from tasks.formats import without_rows
from tasks.garbage import collect_garbage
from tasks.inbox import count_named, named_in, source_objects, uri_of
from tasks.markers import load_markers, texts_of
from tasks.narration import say
from tasks.orphans import orphans_of, purge_run
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
        learned, others, left_to_owner = source_objects(stream, resolved)
        # what was never learned from is left alone where it names nobody
        others = {key for key in others - learned if count_named(stream, targets, key)}
        rewritten = [_attempt(refused, _rewrite_source, stream, targets, key) for key in sorted(learned | others)]
        _compact()
        return {
            "mlflow_versions": len(quarantined["versions"]),
            "mlflow_rows": sum(each[0] for each in removed if each),
            "objects": sum(each[1] for each in removed if each),
            "source_objects_rewritten": rewritten.count(True),
            "source_objects_left_to_owner": left_to_owner,
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


def _rewrite_source(stream: Stream, targets: Set[tuple[str, str]], key: str) -> bool:
    """Write an object of our inbox bucket without the targets; its old versions go, and all where it was taken away.

    An object elsewhere belongs to its owner: the suppression list keeps its rows out, and the certificate says so.
    Raises PurgeError for one that cannot be read, or that is delivered anew as often as it is read.
    """
    s3, bucket = storage.s3(), settings().inbox_bucket
    with taking_in(stream.name):
        for _ in range(TRIES):
            before = artifacts.list_versions(s3, bucket, key)
            is_gone = _current(bucket, key) is None
            left = "" if is_gone else _rewrite_current(stream, targets, key, before)
            if left is not None:
                _purge_older(bucket, key)
                uploads = artifacts.list_uploads(s3, bucket, key)
                artifacts.abort_uploads(s3, bucket, [upload for upload in uploads if upload.key == key])
                with database.transaction() as session:
                    catalog.forget_tags(session, uri_of(key), left)
                return True
    raise PurgeError(
        f"object {uri_of(key)} was delivered anew each time it was read; wait until it stays, then purge again"
    )


def _rewrite_current(
    stream: Stream, targets: Set[tuple[str, str]], key: str, before: Sequence[artifacts.ObjectVersion]
) -> str | None:
    """Write the object that a reader gets without the targets; returns its tag, an empty one where nothing is left of
    it, and None where another was put in its place meanwhile.

    What was taken in is known afterwards too. What was not stays new, for the next run to learn, and goes with the
    versions `before` where no row would be left.
    """
    uri = uri_of(key)
    try:
        delivery, data = source.fetch(uri, "")
        with database.transaction() as session:
            batch_id = catalog.batch_of(session, stream.name, delivery.digest)
        named = named_in(stream, targets, uri, data, batch_id is not None)
    except SourceError as error:
        raise PurgeError(f"{error}, or delete it: nobody can say whose rows it holds") from None
    tag: str | None = delivery.tag
    if batch_id is None and named and all(named):
        _purge(key, before)
        tag = ""
    elif any(named):
        data = without_rows(data, uri, named)
        # known before it lies there: a crash in between must not make the rest of the batch a new batch
        _know(delivery, data, "")
        tag = source.replace_object(delivery, data)
    if tag:
        _know(delivery, data, tag)
    return tag


def _current(bucket: str, key: str) -> str | None:
    """The version that a reader gets; None for an object that is gone or under a delete marker."""
    found = artifacts.list_current(storage.s3(), bucket, key)
    return next((version.version_id for version in found if version.key == key), None)


def _purge_older(bucket: str, key: str) -> None:
    """Remove every version of an object but the current one, also those that an interrupted purge left."""
    before = artifacts.list_versions(storage.s3(), bucket, key)
    # asked last: what is delivered after the listing is not in it
    current = _current(bucket, key)
    _purge(key, [version for version in before if version.version_id != current])


def _purge(key: str, versions: Sequence[artifacts.ObjectVersion]) -> None:
    for version in versions:
        if version.key == key:
            artifacts.delete_versions(storage.s3(), settings().inbox_bucket, [version])


def _know(read: Delivery, data: bytes, tag: str) -> None:
    """Know what an object holds now as the batch that it was, in every stream that took it in."""
    written = Delivery(read.uri, sha256(data).hexdigest(), len(data), tag)
    with database.transaction() as session:
        for stream, batch_id in catalog.taken_in_as(session, read.digest).items():
            catalog.add_delivery(session, stream, written, batch_id)


def _compact() -> None:
    """Make deleted bytes unreadable on disk, in the databases and in the store, where they are ours."""
    database.compact()
    tracking.compact()
    storage.compact()
