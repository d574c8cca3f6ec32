"""Adapters and what shaped them. Every function takes the caller's session; none commits."""

from collections.abc import Collection, Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from registry import approvals
from registry.errors import StateError, UnknownIdError
from registry.records import Adapter, AdapterState, EdgeKind, Gate
from registry.tables import AdapterRow, EdgeRow, StreamRow, in_chunks

_MOVES = {
    AdapterState.CANDIDATE: {AdapterState.SERVING, AdapterState.RETIRED, AdapterState.MERGED, AdapterState.ERASED},
    AdapterState.SERVING: {AdapterState.CANDIDATE, AdapterState.MERGED, AdapterState.RETIRED, AdapterState.ERASED},
    AdapterState.MERGED: {AdapterState.SERVING, AdapterState.RETIRED, AdapterState.ERASED},
    AdapterState.RETIRED: {AdapterState.CANDIDATE, AdapterState.SERVING, AdapterState.ERASED},
    AdapterState.ERASED: set(),
}


def new_adapter_id(session: Session, stream: str) -> str:
    """Ids count up and are never given twice, so an erased adapter's name stays its own."""
    row = session.get(StreamRow, stream, with_for_update=True, populate_existing=True)
    if row is None:
        raise UnknownIdError("stream", stream)
    row.adapters_born += 1
    session.flush()
    return f"{stream}-a{row.adapters_born}"


def put_adapter(session: Session, adapter: Adapter) -> None:
    """Write an adapter with its edges; a second call replaces both."""
    session.merge(
        AdapterRow(
            adapter_id=adapter.adapter_id,
            stream=adapter.stream,
            group=adapter.group,
            state=adapter.state,
            recipe=adapter.recipe,
            accuracy=adapter.accuracy,
            reason=adapter.reason,
        )
    )
    session.execute(delete(EdgeRow).where(EdgeRow.child == adapter.node))
    parents = [
        *[(f"shard:{s}", EdgeKind.TRAINED_ON, n) for n, s in enumerate(adapter.shard_ids)],
        *[(f"adapter:{a}", EdgeKind.MERGED_FROM, n) for n, a in enumerate(adapter.parent_ids)],
        *[(f"shard:{s}", EdgeKind.SERVES, n) for n, s in enumerate(adapter.serves)],
    ]
    if adapter.is_mixture:
        joint = (EdgeKind.WARM_START, EdgeKind.ROUTER_FIT)
        parents += [(f"shard:{s}", kind, n) for n, s in enumerate(adapter.shard_ids) if n for kind in joint]
    session.add_all(EdgeRow(child=adapter.node, parent=p, kind=k, ordinal=n) for p, k, n in parents)
    session.flush()


def get_adapter(session: Session, adapter_id: str) -> Adapter:
    found = find_adapter(session, adapter_id)
    if found is None:
        raise UnknownIdError("adapter", adapter_id)
    return found


def find_adapter(session: Session, adapter_id: str) -> Adapter | None:
    row = session.get(AdapterRow, adapter_id)
    return None if row is None else _to_adapters(session, [row])[0]


def get_adapters(session: Session, adapter_ids: Sequence[str]) -> list[Adapter]:
    """These adapters in the order given, in two queries for 500 of them. Raises UnknownIdError."""
    found: dict[str, AdapterRow] = {}
    for chunk in in_chunks(adapter_ids):
        found |= {r.adapter_id: r for r in session.scalars(select(AdapterRow).where(AdapterRow.adapter_id.in_(chunk)))}
    for adapter_id in adapter_ids:
        if adapter_id not in found:
            raise UnknownIdError("adapter", adapter_id)
    return _to_adapters(session, [found[adapter_id] for adapter_id in adapter_ids])


def adapters(session: Session, stream: str, states: Collection[AdapterState] = ()) -> list[Adapter]:
    """Adapters of a stream in the order of their numbers, the first first: clocks jump."""
    query = select(AdapterRow).where(AdapterRow.stream == stream)
    query = query.order_by(func.length(AdapterRow.adapter_id), AdapterRow.adapter_id)
    if states:
        query = query.where(AdapterRow.state.in_(states))
    return _to_adapters(session, list(session.scalars(query)))


def move_adapter(session: Session, adapter_id: str, state: AdapterState, reason: str) -> Adapter:
    """Change an adapter's state with its reason. Raises StateError for a move that cannot be."""
    row = session.get(AdapterRow, adapter_id)
    if row is None:
        raise UnknownIdError("adapter", adapter_id)
    if row.state != state and state not in _MOVES[AdapterState(row.state)]:
        raise StateError(f"adapter {adapter_id!r} is {row.state} and cannot become {state}")
    row.state, row.reason = state, reason
    if state not in (AdapterState.CANDIDATE, AdapterState.SERVING):
        over = f"{adapter_id} is {state}: {reason}"
        approvals.end(session, row.stream, Gate.MERGE, lambda what: adapter_id in what.split("+"), over)
    session.flush()
    return _to_adapters(session, [row])[0]


def count_states(session: Session, stream: str) -> dict[str, int]:
    query = select(AdapterRow.state, func.count()).where(AdapterRow.stream == stream).group_by(AdapterRow.state)
    found = dict(session.execute(query).tuples().all())
    return {state.value: found.get(state, 0) for state in AdapterState}


def _to_adapters(session: Session, rows: Sequence[AdapterRow]) -> list[Adapter]:
    edges: dict[str, list[tuple[str, str]]] = {f"adapter:{row.adapter_id}": [] for row in rows}
    columns = select(EdgeRow.child, EdgeRow.kind, EdgeRow.parent)  # no objects: there are many
    for chunk in in_chunks(list(edges)):
        query = columns.where(EdgeRow.child.in_(chunk)).order_by(EdgeRow.ordinal)
        for child, kind, parent in session.execute(query):
            edges[child].append((kind, parent))
    return [_to_record(row, edges[f"adapter:{row.adapter_id}"]) for row in rows]


def _to_record(row: AdapterRow, edges: Sequence[tuple[str, str]]) -> Adapter:
    def parents(wanted: EdgeKind) -> list[str]:
        return [parent.split(":", 1)[1] for kind, parent in edges if kind == wanted]

    return Adapter(
        adapter_id=row.adapter_id,
        stream=row.stream,
        group=row.group,
        state=AdapterState(row.state),
        shard_ids=tuple(int(p) for p in parents(EdgeKind.TRAINED_ON)),
        parent_ids=tuple(parents(EdgeKind.MERGED_FROM)),
        serves=tuple(int(p) for p in parents(EdgeKind.SERVES)),
        recipe=row.recipe,
        accuracy=row.accuracy,
        reason=row.reason,
    )
