"""The objects of our own inbox bucket that a deletion looks through, and the rows that its targets name in them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from hashlib import sha256

from infra import database, storage
from infra.settings import settings
from registry import artifacts, catalog
from registry.errors import SourceError
from registry.records import BatchState
from registry.stream import Stream
from tasks import source
from tasks.formats import unpacked
from tasks.reading import check_columns, named_rows
from tasks.saga import Detail
from tasks.shards import names_nobody


def source_objects(stream: Stream, resolved: Detail) -> tuple[set[str], set[str], int]:
    """Keys of the source objects that the ticket's batches came from, and those that were discarded by hand, with those
    of the same content; keys that the catalog cannot answer for; and how many objects that may hold such rows lie
    elsewhere, with their owners."""
    with database.transaction() as session:
        tags, every = catalog.known_tags(session, stream.name), catalog.batches(session, stream.name)
    discarded = {batch.batch_id for batch in every if batch.state == BatchState.DISCARDED}
    unnamed = {batch.batch_id for batch in every if names_nobody(batch)}
    with database.transaction() as session:
        uris = catalog.uris_of(session, {*resolved["batches"], *discarded})
        perhaps = catalog.uris_of(session, unnamed)
    whole = {batch.batch_id: batch.uri for batch in every if not batch.suppressed and batch.batch_id not in unnamed}
    others = _others(stream, tags, whole, {batch.uri for batch in every})
    learned = {source.split_s3(uri)[1] for uri in uris if is_ours(uri)}
    return learned, others, sum(not is_ours(uri) for uri in uris | perhaps)


def _others(stream: Stream, tags: Mapping[str, str], whole: Mapping[str, str], uris: Set[str]) -> set[str]:
    """Under the stream's source and where it read before: objects that are new, were refused, or have versions before
    the current one; and of those that it took in, what repeats another, or held rows of somebody who was forgotten
    before they came, or rows that name nobody. What was taken in and is alone is in the catalog, where a ticket finds
    it."""
    taken_in = [(tag.rpartition("#")[0], batch_id) for tag, batch_id in tags.items()]
    untold = {source.split_s3(uri)[1] for uri, known_as in taken_in if is_ours(uri) and whole.get(known_as) != uri}
    read = {source.split_s3(uri)[1] for uri in {*(uri for uri, _ in taken_in), *uris} if is_ours(uri)}
    bucket = settings().inbox_bucket
    settled = {key for key, tag in source.tags_under(bucket) if tag in tags}
    listed = (version.key for version in artifacts.list_versions(storage.s3(), bucket))
    versions = Counter(filter(_reader(stream, read), listed))
    return untold | {key for key, count in versions.items() if count > 1 or key not in settled}


def _reader(stream: Stream, read: Set[str]) -> Callable[[str], bool]:
    """Whether the stream reads a key, or has `read` it, or others of its folder where no other stream reads."""
    with database.transaction() as session:
        names = catalog.stream_names(session)
        theirs = [catalog.get_stream(session, name).source for name in names if name != stream.name]
    folders = {key.rpartition("/")[0] for key in read}

    def reads(where: str, key: str) -> bool:
        return is_ours(where) and source.is_object(where, key)

    def is_read(key: str) -> bool:
        beside = key.rpartition("/")[0] in folders and reads(uri_of(""), key)
        return key in read or reads(stream.source, key) or (beside and not any(reads(s, key) for s in theirs))

    return is_read


def count_named(stream: Stream, targets: Set[tuple[str, str]], key: str) -> int:
    """Rows that the targets name in any version of an object; a version that cannot be read counts for one."""
    s3, bucket = storage.s3(), settings().inbox_bucket
    found = [v for v in artifacts.list_versions(s3, bucket, key) if v.key == key and not v.is_delete_marker]
    return sum(_count_in(stream, targets, version) for version in found)


def named_in(stream: Stream, targets: Set[tuple[str, str]], uri: str, data: bytes, taken_in: bool) -> list[bool]:
    """Per row of an object, whether the targets name it. Of what was taken in, a row that cannot be read may be
    anybody's: it was never learned from, and counts as named. Raises SourceError where something else has such rows, or
    none that says whom it names."""
    if not taken_in and data.strip():
        check_columns(data, uri, stream, "id", "subject")
    kinds = {kind: {keyed for k, keyed in targets if k == kind} for kind in ("record", "subject")}
    named = named_rows(data, uri, stream, kinds)
    if not taken_in and None in named:
        raise SourceError(f"object {uri} has {named.count(None)} rows that cannot be read; correct and deliver again")
    return [each is not False for each in named]


def unpacked_hits(stream: Stream, markers: Sequence[bytes]) -> set[str]:
    """Keys of objects that the stream does not read, which hold a marker: compressed, or escaped as JSON and CSV do, so
    that no search for bytes finds it. What the stream reads is asked for by name."""
    s3, bucket, found = storage.s3(), settings().inbox_bucket, set[str]()
    is_read = is_ours(stream.source)
    for version in artifacts.list_versions(s3, bucket) if markers else ():
        key, fits = version.key, 0 < version.size <= settings().object_bytes
        if fits and source.is_object(f"s3://{bucket}/", key) and not (is_read and source.is_object(stream.source, key)):
            data = artifacts.get_version(s3, bucket, version)
            with suppress(SourceError):  # its bytes were searched as they are
                if any(m in text for text in unpacked(data, key, settings().object_bytes) for m in markers):
                    found.add(key)
    return found


def known_objects(stream: str) -> set[str]:
    """URIs of the objects that a stream knows."""
    with database.transaction() as session:
        return {tag.rpartition("#")[0] for tag in catalog.known_tags(session, stream)}


def uri_of(key: str) -> str:
    return f"s3://{settings().inbox_bucket}/{key}"


def is_ours(uri: str) -> bool:
    return uri.startswith(f"s3://{settings().inbox_bucket}/")


def _count_in(stream: Stream, targets: Set[tuple[str, str]], version: artifacts.ObjectVersion) -> int:
    if version.size > settings().object_bytes:  # it was never unpacked, and is not now
        return 1
    data = artifacts.get_version(storage.s3(), settings().inbox_bucket, version)
    with database.transaction() as session:
        taken_in = catalog.batch_of(session, stream.name, sha256(data).hexdigest()) is not None
    try:
        return sum(named_in(stream, targets, uri_of(version.key), data, taken_in))
    except SourceError:
        return 1
