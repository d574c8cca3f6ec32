"""Over any graph of merges, a deletion's replay ends in the bytes of a build that never had the records."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from registry import adapters, catalog, contents
from registry.records import Adapter, AdapterState
from registry.tables import Base
from tasks.forgetting import plan_for
from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging import OPERATORS, merge
from tasks.learning.tensors import digest_of
from tasks.policies.merging import MAX_DEPTH
from tests.learning.test_merging import parent
from tests.registry.conftest import STREAM, add_batch

TRAINED = 4


@dataclass(frozen=True, slots=True)
class Merge:
    parents: tuple[int, ...]
    operator: str
    shares: tuple[float, ...]

    @property
    def recipe(self) -> dict[str, object]:
        return {"kind": "merged", "operator": self.operator, "shares": list(self.shares)}


@st.composite
def graphs(draw) -> list[Merge]:
    """Merges of trained adapters 0 to 3 and of earlier merges, in any order of parents, at most MAX_DEPTH deep."""
    merges, depths = [], [0] * TRAINED
    for _ in range(draw(st.integers(1, 6))):
        allowed = [node for node, depth in enumerate(depths) if depth < MAX_DEPTH]
        parents = draw(st.permutations(allowed))[: draw(st.integers(2, 3))]
        parts = [draw(st.integers(1, 5)) for _ in parents]
        shares = tuple(part / sum(parts) for part in parts)
        merges.append(Merge(tuple(parents), draw(st.sampled_from(tuple(OPERATORS))), shares))
        depths.append(1 + max(depths[node] for node in parents))
    return merges


def build(merges: list[Merge], trained: list[AdapterWeights]) -> list[AdapterWeights]:
    built = list(trained)
    for each in merges:
        built.append(merge(each.recipe, [built[node] for node in each.parents]))
    return built


def enter(session: Session, merges: list[Merge]) -> list[int]:
    """Adapters mail-a0, mail-a1 and so on as the catalog keeps them, the first of a shard each; returns the shards."""
    add_batch(session, "01", groups=tuple("abcd"))
    shaped = [(shard.shard_id,) for shard in contents.shards(session, range(1, TRAINED + 1))]
    for n, shards in enumerate(shaped):
        adapters.put_adapter(session, Adapter(f"mail-a{n}", "mail", "g", AdapterState.SERVING, shards))
    for n, each in enumerate(merges, TRAINED):
        shaped.append(tuple({shard for node in each.parents for shard in shaped[node]}))
        parents = tuple(f"mail-a{node}" for node in each.parents)
        merged = Adapter(f"mail-a{n}", "mail", "g", AdapterState.SERVING, shaped[n], parents, recipe=each.recipe)
        adapters.put_adapter(session, merged)
    return [shard for (shard,) in shaped[:TRAINED]]


def repair(
    session: Session, stored: dict[str, AdapterWeights], leaving: list[int], clean: list[AdapterWeights]
) -> None:
    """The ticket's own plan, over what the catalog recorded."""
    for each in plan_for(session, "mail", dict.fromkeys(leaving, 1)).repairs:
        adapter = adapters.get_adapter(session, each.adapter_id)
        if each.action == "retrain":
            stored[each.adapter_id] = clean[int(each.adapter_id.removeprefix("mail-a"))]
        else:
            assert each.action == "replay"
            stored[each.adapter_id] = merge(adapter.recipe, [stored[p] for p in adapter.parent_ids])


@settings(max_examples=60, deadline=None)
@given(graphs(), st.sets(st.integers(0, TRAINED - 1), min_size=1), st.data())
def test_replayed_merges_are_those_of_a_clean_build(merges, touched, data):
    before = [parent(n) for n in range(TRAINED)]
    ranks = {n: data.draw(st.integers(1, 4)) for n in touched}  # nested ranks are chosen anew
    clean = [parent(n + 100, ranks[n]) if n in touched else before[n] for n in range(TRAINED)]
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        catalog.save_stream(session, STREAM, "d")
        shards = enter(session, merges)
        stored = {f"mail-a{n}": weights for n, weights in enumerate(build(merges, before))}
        repair(session, stored, [shards[n] for n in touched], clean)
    engine.dispose()
    wanted = {f"mail-a{n}": digest_of(weights) for n, weights in enumerate(build(merges, clean))}
    assert {name: digest_of(weights) for name, weights in stored.items()} == wanted
