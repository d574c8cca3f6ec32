"""The release gate: nothing that suppressed records shaped may be registered or promoted."""

from sqlalchemy.orm import Session

from registry import catalog, lineage, tickets
from registry.errors import StaleEpochError, SuppressedRecordError
from tasks.assembly import Manifest
from tasks.identity import catalog_key


def check_release(session: Session, manifest: Manifest, what: str) -> None:
    """Raise when a ticket came in since the work began, or a suppressed record still stands behind the manifest.

    The lineage query is the gate itself: from the suppression list to shards, from shards to whatever the manifest
    serves. It has to be empty.
    """
    stream = manifest["stream"]["name"]
    current = catalog.stream_epoch(session, stream)
    if manifest["epoch"] != current:
        raise StaleEpochError(what, manifest["epoch"], current)
    tainted = tainted_shards(session, stream)
    served = {shard["shard_id"] for shard in manifest["shards"]}
    served |= {part["shard_id"] for adapter in manifest["adapters"] for part in adapter["statistics"]}
    reached = set(lineage.closure(session, tainted)) & {adapter["adapter_id"] for adapter in manifest["adapters"]}
    if served & tainted or reached:
        raise SuppressedRecordError(
            f"{what} rests on records that a deletion ticket names (shards {sorted(served & tainted)}, adapters "
            f"{sorted(reached)}); finish the open tickets of stream {stream!r} first"
        )


def tainted_shards(session: Session, stream: str) -> set[int]:
    """Shards that still hold a suppressed record."""
    targets = tickets.suppressed(session, stream)
    by_subject = lineage.records_of_subjects(session, sorted(map(catalog_key, targets["subject"])))
    by_record = lineage.records_by_key(session, sorted(map(catalog_key, targets["record"])))
    return {*by_subject, *by_record}
