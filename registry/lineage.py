"""From records to everything they shaped: plain recursive SQL, no graph database."""

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry.records import EdgeKind
from registry.tables import EdgeRow, RecordRow, ShardRow

_CHUNK = 500


def records_of_subjects(session: Session, subjects: Sequence[int]) -> dict[int, list[int]]:
    """Shard id -> keys of the records that belong to these subjects."""
    return _by_shard(session, subjects, RecordRow.subject)


def records_by_key(session: Session, keys: Sequence[int]) -> dict[int, list[int]]:
    """Shard id -> those of these record keys that the catalog knows."""
    return _by_shard(session, keys, RecordRow.key)


def _by_shard(session: Session, wanted: Sequence[int], column: object) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        query = select(RecordRow.shard_id, RecordRow.key).where(column.in_(chunk))  # type: ignore[attr-defined]
        for shard_id, key in session.execute(query.order_by(RecordRow.shard_id, RecordRow.key)):
            found.setdefault(shard_id, []).append(key)
    return found


def closure(session: Session, shard_ids: Iterable[int], kinds: Collection[EdgeKind] = tuple(EdgeKind)) -> list[str]:
    """Every adapter reachable from these shards, parents before children (the order of repair).

    With TRAINED_ON and MERGED_FROM alone: adapters whose weights the shards shaped. With SERVES as well: those, and
    adapters that only keep the shards' statistics.
    """
    starts = [f"shard:{s}" for s in shard_ids]
    allowed = [kind.value for kind in kinds]
    reach = (
        select(EdgeRow.child.label("node"))
        .where(EdgeRow.parent.in_(starts), EdgeRow.kind.in_(allowed))
        .cte("reach", recursive=True)
    )
    reach = reach.union(
        select(EdgeRow.child).join(reach, EdgeRow.parent == reach.c.node).where(EdgeRow.kind.in_(allowed))
    )
    nodes = set(session.scalars(select(reach.c.node)))
    return _parents_first(session, nodes)


def _parents_first(session: Session, nodes: set[str]) -> list[str]:
    query = select(EdgeRow.child, EdgeRow.parent).where(EdgeRow.kind == EdgeKind.MERGED_FROM, EdgeRow.child.in_(nodes))
    waiting: dict[str, set[str]] = {node: set() for node in nodes}
    for child, parent in session.execute(query):
        if parent in nodes:
            waiting[child].add(parent)
    ordered: list[str] = []
    while waiting:
        ready = sorted((n for n, parents in waiting.items() if not parents), key=_number)
        ordered += ready
        waiting = {n: parents - set(ready) for n, parents in waiting.items() if n not in ready}
    return [node.removeprefix("adapter:") for node in ordered]


def _number(node: str) -> tuple[int, str]:
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


def shard_rows(session: Session, shard_ids: Iterable[int]) -> int:
    query = select(func.coalesce(func.sum(ShardRow.rows), 0)).where(ShardRow.shard_id.in_(list(shard_ids)))
    return int(session.scalar(query) or 0)
