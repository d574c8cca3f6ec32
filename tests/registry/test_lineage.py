from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from registry import adapters, catalog, lineage
from registry.records import Adapter, AdapterState, EdgeKind
from registry.tables import Base
from tests.registry.conftest import STREAM

SHAPING = (EdgeKind.TRAINED_ON, EdgeKind.MERGED_FROM)


def put(session, number: int, shards=(), parents=(), serves=()) -> None:
    parent_ids = tuple(f"mail-a{p}" for p in parents)
    adapter = Adapter(f"mail-a{number}", "mail", "g", AdapterState.SERVING, tuple(shards), parent_ids, tuple(serves))
    adapters.put_adapter(session, adapter)


def test_the_closure_reaches_merges_and_statistics_parents_first(session):
    put(session, 1, [1])
    put(session, 2, [2], serves=[1, 2])
    put(session, 3, parents=[1, 2])
    put(session, 4, [9])
    assert lineage.closure(session, [1]) == ["mail-a1", "mail-a2", "mail-a3"]
    assert lineage.closure(session, [2], SHAPING) == ["mail-a2", "mail-a3"]
    assert lineage.merge_depth(session, "mail-a3") == 1
    assert lineage.children(session, "mail-a1") == ["mail-a3"]


def test_a_mixture_hangs_on_later_shards_by_what_they_rest_on(session):
    mixture = Adapter("mail-a1", "mail", "g", AdapterState.SERVING, (1, 3), (), (1, 2, 3), {"kind": "mixture"})
    adapters.put_adapter(session, mixture)
    assert adapters.get_adapter(session, "mail-a1") == mixture
    for kind, reached in ((EdgeKind.WARM_START, {3}), (EdgeKind.ROUTER_FIT, {3}), (EdgeKind.TRAINED_ON, {1, 3})):
        assert {s for s in (1, 2, 3) if lineage.closure(session, [s], [kind])} == reached
    assert all(lineage.closure(session, [s]) == ["mail-a1"] for s in (1, 2, 3))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(1, 5), max_size=2), st.sets(st.integers(0, 8), max_size=2)), max_size=9),
    st.integers(1, 5),
)
def test_the_closure_is_what_a_walk_over_the_graph_finds(nodes, touched):
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        catalog.save_stream(session, STREAM, "d")
        tainted: set[int] = set()
        for number, (shards, parents) in enumerate(nodes):
            earlier = [p for p in parents if p < number]
            put(session, number, sorted(shards), earlier)
            if touched in shards or tainted & set(earlier):
                tainted.add(number)
        found = lineage.closure(session, [touched])
        assert sorted(found) == sorted(f"mail-a{n}" for n in tainted)
        assert found == sorted(found, key=lambda a: int(a.rsplit("a", 1)[1]))
    engine.dispose()
