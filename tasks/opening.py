"""Make a home ready: catalog at its newest revision, buckets there and versioned, MLflow pointed at them."""

from infra import database, storage, tracking
from infra.settings import settings
from registry import catalog, contents
from registry.records import Shard
from registry.stream import Stream


def open_home() -> None:
    database.migrate()
    _open_stores()


def open_for_backup() -> None:
    """Leave a catalog of an older revision at it: a backup comes before the migration, and older code takes it too."""
    found, _ = database.revisions()
    if found is None or not database.is_known(found):
        database.migrate()
    _open_stores()


def _open_stores() -> None:
    storage.ensure_buckets()
    tracking.prepare_tracking()


def stream_of(name: str) -> Stream:
    with database.transaction() as session:
        return catalog.get_stream(session, name)


def stream_names() -> list[str]:
    with database.transaction() as session:
        return catalog.stream_names(session)


def served_shards(stream: str) -> list[Shard]:
    with database.transaction() as session:
        return contents.done_shards(session, stream)


def known_tags(stream: str) -> set[str]:
    with database.transaction() as session:
        return set(catalog.known_tags(session, stream))


def batch_id_of(named: str) -> str:
    with database.transaction() as session:
        return catalog.batch_id_of(session, named)


def certificate_path(ticket_id: str) -> str:
    return str(settings().home / "certificates" / f"{ticket_id}.json")
