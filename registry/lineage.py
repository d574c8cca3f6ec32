"""From records to everything they shaped: plain recursive SQL, no graph database."""

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.records import EdgeKind
from registry.tables import EdgeRow, RecordRow, SubjectRow, in_chunks


def records_of_subjects(session: Session, subjects: Sequence[int]) -> dict[int, list[int]]:
    """Shard id -> keys of the records that belong to these subjects."""
    numbers: list[int] = []
    for chunk in in_chunks(subjects):
        numbers += session.scalars(select(SubjectRow.subject_id).where(SubjectRow.key.in_(chunk)))
    return _by_shard(session, numbers, RecordRow.subject_id)


def records_by_key(session: Session, keys: Sequence[int]) -> dict[int, list[int]]:
    """Shard id -> those of these record keys that the catalog knows."""
    return _by_shard(session, keys, RecordRow.key)


def _by_shard(session: Session, wanted: Sequence[int], column: object) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for chunk in in_chunks(wanted):
        query = select(RecordRow.shard_id, RecordRow.key).where(column.in_(chunk))  # type: ignore[attr-defined]
        for shard_id, key in session.execute(query.order_by(RecordRow.shard_id, RecordRow.key)):
            found.setdefault(shard_id, []).append(key)
    return found


def closure(session: Session, shard_ids: Iterable[int], kinds: Collection[EdgeKind] = tuple(EdgeKind)) -> list[str]:
    """Every adapter reachable from these shards, parents before children (the order of repair).

    With TRAINED_ON and MERGED_FROM alone: adapters whose weights the shards shaped. With SERVES as well: those, and
    adapters that only keep the shards' statistics.
    """
    # no condition where all kinds are asked for: with one, SQLite goes through every edge before it looks one up
    allowed = [] if set(kinds) == set(EdgeKind) else [EdgeRow.kind.in_([kind.value for kind in kinds])]
    nodes: set[str] = set()
    for starts in in_chunks([f"shard:{s}" for s in shard_ids]):
        reach = (
            select(EdgeRow.child.label("node")).where(EdgeRow.parent.in_(starts), *allowed).cte("reach", recursive=True)
        )
        reach = reach.union(select(EdgeRow.child).join(reach, EdgeRow.parent == reach.c.node).where(*allowed))
        nodes.update(session.scalars(select(reach.c.node)))
    return [node.removeprefix("adapter:") for node in sorted(nodes, key=by_number)]


def by_number(node: str) -> tuple[int, str]:
    """Ids count up (`new_adapter_id`), so that by number a merge comes after its parents."""
    digits = node.rsplit("-a", 1)[-1]
    return (int(digits) if digits.isdigit() else 0, node)


def children(session: Session, adapter_id: str) -> list[str]:
    """Adapters merged from this one."""
    query = select(EdgeRow.child).where(EdgeRow.parent == f"adapter:{adapter_id}", EdgeRow.kind == EdgeKind.MERGED_FROM)
    return [child.removeprefix("adapter:") for child in session.scalars(query.order_by(EdgeRow.child))]


def merge_depth(session: Session, adapter_id: str) -> int:
    """0 for a trained adapter, 1 + the deepest parent's depth for a merged one."""
    query = select(EdgeRow.parent).where(EdgeRow.child == f"adapter:{adapter_id}", EdgeRow.kind == EdgeKind.MERGED_FROM)
    parents = [p.removeprefix("adapter:") for p in session.scalars(query)]
    return 1 + max(merge_depth(session, p) for p in parents) if parents else 0
