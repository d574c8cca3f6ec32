"""Look for what a deletion might have left: the records' bytes in every store, and what should be gone by name.

Bytes are the stronger question where they lie bare; what is compressed (a source object) or derived (weights) is asked
for by name: rows, digests, versions.
"""

from collections.abc import Sequence, Set
from pathlib import Path

from infra import database, disk_sweep, storage, tracking
from infra.settings import settings
from registry import artifacts, catalog, contents, models, ownership, row_sweep, versions
from registry.records import Ticket, VersionState
from registry.stream import Stream
from tasks import blobs
from tasks.inbox import count_named, known_objects, source_objects, unpacked_hits, uri_of
from tasks.markers import Marked, attributable, load_marked, texts_of
from tasks.narration import say
from tasks.purging import targets_of
from tasks.retries import step
from tasks.saga import Detail, once
from tasks.shards import load_rows
from tasks.tickets import find_records


@step("sweep-{together[0].ticket_id}")
def sweep(stream: Stream, together: Sequence[Ticket], resolved: Detail, quarantined: Detail) -> Detail:
    """Search every store; what is found makes the tickets exceptions."""

    def work() -> Detail:
        targets = targets_of(together)
        held, of_ticket = _markers_to_find(stream, together, targets)
        markers = sorted({marker for found in of_ticket.values() for marker in found})
        learned, others, _ = source_objects(stream, resolved)
        hits, places = _sweep_bytes(stream, markers)
        hits |= {
            "records in the catalog": _count_records(targets),
            "rows of source objects": sum(count_named(stream, targets, key) for key in learned | others),
            "replaced blobs": len(_kept_blobs(stream, resolved)),
            "withdrawn versions": len(_kept_versions(stream, quarantined["versions"])),
        }
        looked_for = {ticket_id: len(found) for ticket_id, found in of_ticket.items()}
        shared = {ticket_id: held[ticket_id] - looked_for[ticket_id] for ticket_id in held}
        found = {"hits": sum(hits.values()), "by_store": hits, **_by_owner(stream, places)}
        return {**found, "markers": looked_for, "shared": shared}

    detail = once(together, "sweep", work)
    say(f"  swept for {sum(detail['markers'].values())} markers: {detail['hits']} hits")
    return detail


def _sweep_bytes(stream: Stream, markers: Sequence[bytes]) -> tuple[dict[str, int], set[str]]:
    """Hits by store, and the objects and files that they lie in: no object whose own name is a hit, which would carry
    it into the certificate, and no file of the embedded S3, whose objects are named."""
    hits, places = dict[str, int](), set[str]()
    for bucket in (settings().artifact_bucket, settings().inbox_bucket):
        in_bucket = artifacts.sweep_bytes(storage.s3(), bucket, markers)
        hits[f"bucket {bucket}"] = len(in_bucket)
        named = {hit.key for hit in in_bucket if hit.place == "key"}
        places |= {f"s3://{bucket}/{hit.key}" for hit in in_bucket if hit.key not in named}
        if bucket == settings().inbox_bucket:
            packed = unpacked_hits(stream, markers) - {hit.key for hit in in_bucket}
            hits[f"bucket {bucket}"] += len(packed)
            places |= {uri_of(key) for key in packed}
    for found in disk_sweep.sweep_files(_home_entries(), markers):
        folder, *below = found.path.relative_to(settings().home).parts
        hits[f"home {folder}"] = hits.get(f"home {folder}", 0) + 1
        # a cached state is named by its record
        shown = found.path if folder != "cache" else settings().home.joinpath(folder, *below[:1])
        places |= {str(shown)} if folder != "s3" else set()
    # databases that are no file of the home, row by row; a hidden state is never in a row
    for name, engine in (("catalog", database.engine()), ("mlflow", tracking.backend_engine())):
        if engine.dialect.name != "sqlite":
            with engine.connect() as connection:
                hits[f"database {name}"] = len(row_sweep.sweep_rows(connection, texts_of(markers)))
    return hits, places


def _by_owner(stream: Stream, places: Set[str]) -> Detail:
    """What a person takes away, and the other streams that learned the same: what lies there is theirs to erase."""
    with database.transaction() as session:
        others = [name for name in catalog.stream_names(session) if name != stream.name]
    bucket, cache = settings().artifact_bucket, settings().home / "cache"
    theirs = {
        name: places & {str(cache / name), *known_objects(name)}
        | {place for place in places if place.startswith(f"s3://{bucket}/{blobs.stream_prefix(name)}")}
        for name in others
    }
    return {
        "found_in": sorted(places - set().union(*theirs.values())),
        "also_learned_by": sorted(name for name, held in theirs.items() if held),
    }


def _home_entries() -> list[Path]:
    return [entry for entry in settings().home.iterdir() if entry.name not in ("escrow", "keys")]


def _markers_to_find(
    stream: Stream, together: Sequence[Ticket], targets: Set[tuple[str, str]]
) -> tuple[dict[str, int], dict[str, list[bytes]]]:
    """Ticket -> the number of its markers, and those that only its deleted records had. Without the hashes that tickets
    named: the suppression list keeps them."""
    named = {keyed.encode() for _, keyed in targets}

    def to_find(found: Sequence[Marked]) -> list[bytes]:
        return [marker for each in found for marker in each.markers if marker not in named]

    left = {ticket.ticket_id: load_marked(ticket.ticket_id) for ticket in together}
    held = {ticket_id: len(to_find(found)) for ticket_id, found in left.items()}
    with database.transaction() as session:
        shards = contents.stored_shards(session, stream.name)
    for shard in shards:
        retained = load_rows(shard)
        left = {ticket_id: attributable(stream, marked, retained) for ticket_id, marked in left.items()}
    return held, {ticket_id: to_find(found) for ticket_id, found in left.items()}


def _count_records(targets: Set[tuple[str, str]]) -> int:
    with database.transaction() as session:
        return sum(map(len, find_records(session, targets).values()))


def _kept_blobs(stream: Stream, resolved: Detail) -> set[str]:
    """Keys of blobs that the deletion replaced and nothing owns any more, but the store still holds."""
    before = {stored["key"] for stored in resolved["before"]}
    with database.transaction() as session:
        dead = before - ownership.owned_keys(session, before)
    listed = artifacts.list_versions(storage.s3(), settings().artifact_bucket, blobs.stream_prefix(stream.name))
    return dead & {version.key for version in listed}


def _kept_versions(stream: Stream, withdrawn: Sequence[int]) -> set[int]:
    """Withdrawn versions that the catalog does not call erased, or that MLflow still lists."""
    client = tracking.prepare_tracking()
    with database.transaction() as session:
        erased = {v.version for v in versions.versions(session, stream.name, VersionState.ERASED)}
    return (set(withdrawn) - erased) | (set(withdrawn) & set(models.list_versions(client, stream.name)))
