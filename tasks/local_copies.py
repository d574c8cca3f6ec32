"""What a machine keeps on its own disk follows the deletions, wherever they were worked.

The steps of a ticket reach the machine that works it. Every other one, a GPU worker for instance, catches up before its
next flow of the stream.
"""

from collections.abc import Collection

from sqlalchemy.orm import Session

from infra import database
from infra.settings import settings
from registry import contents, ownership, suppression, ticket_log
from tasks import blob_cache, disk_cache, prefix_cache
from tasks.identity import catalog_key
from tasks.narration import say
from tasks.release import suppressed_keys


def follow_deletions(stream: str) -> int:
    """Drop cached states of records that are gone or suppressed, and cached weights that are condemned or that nothing
    names; returns how many files went. One query where no ticket of the stream moved since this machine last looked."""
    looked = settings().home / "followed" / stream
    with database.transaction() as session:
        newest = str(ticket_log.newest_event(session, stream))
        if newest == (looked.read_text() if looked.exists() else "0"):
            return 0
        records = _without_place(session, stream, prefix_cache.records_of(stream))
        clean = _with_place(session, stream, blob_cache.digests())
    gone = prefix_cache.purge(stream, records) + blob_cache.retain(clean)
    disk_cache.write_whole(looked, newest.encode())
    if gone:
        say(f"{stream}: {gone} cached files of this machine went: since the last deletion nothing holds them")
    return gone


def _without_place(session: Session, stream: str, records: Collection[str]) -> list[str]:
    """Those of the records that the catalog does not hold, or that a ticket names."""
    keys = {record: catalog_key(record) for record in records}
    kept = contents.known_records(session, sorted(keys.values())) - suppressed_keys(session, stream)
    return sorted(record for record, key in keys.items() if key not in kept)


def _with_place(session: Session, stream: str, digests: Collection[str]) -> set[str]:
    return ownership.owned_digests(session, digests) - suppression.condemned(session, stream, digests)
