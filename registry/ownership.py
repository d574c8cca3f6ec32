"""Blobs and who owns them; one that nobody owns is collected. Takes the caller's session, never commits."""

from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from registry.errors import UnknownIdError
from registry.records import StoredObject
from registry.tables import ObjectRow, in_chunks


def put_object(session: Session, stored: StoredObject) -> None:
    session.merge(
        ObjectRow(owner=stored.owner, kind=stored.kind, key=stored.key, sha256=stored.sha256, size=stored.size)
    )


def put_objects(session: Session, stored: Iterable[StoredObject]) -> None:
    for each in stored:
        put_object(session, each)


def find_object(session: Session, owner: str, kind: str) -> StoredObject | None:
    row = session.get(ObjectRow, (owner, kind))
    return None if row is None else _to_object(row)


def get_object(session: Session, owner: str, kind: str) -> StoredObject:
    found = find_object(session, owner, kind)
    if found is None:
        raise UnknownIdError(f"{kind} object of", owner)
    return found


def objects_of(session: Session, owners: Iterable[str]) -> list[StoredObject]:
    """Ordered by owner and kind."""
    columns = select(ObjectRow.key, ObjectRow.sha256, ObjectRow.size, ObjectRow.kind, ObjectRow.owner)
    found: list[StoredObject] = []
    for chunk in in_chunks(sorted(set(owners))):
        query = columns.where(ObjectRow.owner.in_(chunk)).order_by(ObjectRow.owner, ObjectRow.kind)
        found += [StoredObject(*row) for row in session.execute(query).tuples()]
    return found


def drop_object(session: Session, owner: str, kind: str) -> None:
    row = session.get(ObjectRow, (owner, kind))
    if row is not None:
        session.delete(row)
        session.flush()


def drop_objects(session: Session, owner: str) -> None:
    session.execute(delete(ObjectRow).where(ObjectRow.owner == owner))


def all_keys(session: Session, prefix: str) -> set[str]:
    """Every key under a prefix that some node owns."""
    return set(session.scalars(select(ObjectRow.key).where(ObjectRow.key.startswith(prefix, autoescape=True))))


def owned_keys(session: Session, keys: Iterable[str]) -> set[str]:
    """Which of these keys some node still owns."""
    found: set[str] = set()
    for chunk in in_chunks(sorted(set(keys))):
        found.update(session.scalars(select(ObjectRow.key).where(ObjectRow.key.in_(chunk))))
    return found


def owned_digests(session: Session, digests: Iterable[str]) -> set[str]:
    """Which of these blobs some node owns."""
    found: set[str] = set()
    for chunk in in_chunks(sorted(set(digests))):
        found.update(session.scalars(select(ObjectRow.sha256).where(ObjectRow.sha256.in_(chunk))))
    return found


def _to_object(row: ObjectRow) -> StoredObject:
    return StoredObject(row.key, row.sha256, row.size, row.kind, row.owner)
