from hypothesis import given
from hypothesis import strategies as st

from registry.records import Adapter, AdapterState
from tasks.policies.forgetting import pause_after, plan_repairs


def adapter(name: str, shards=(), parents=(), serves=()) -> Adapter:
    return Adapter(name, "s", "g", AdapterState.SERVING, tuple(shards), tuple(parents), tuple(serves))


def actions(plan) -> dict[str, str]:
    return {repair.adapter_id: repair.action for repair in plan.repairs}


def test_each_adapter_gets_the_repair_that_its_lineage_asks_for():
    closure = [adapter("a1", [1]), adapter("a2", [2], serves=[1, 2]), adapter("m", [1, 2], ["a1", "a2"])]
    plan = plan_repairs([1], closure, {1: 10, 2: 10})
    assert actions(plan) == {"a1": "retrain", "a2": "refit", "m": "replay"}
    assert plan.rows_to_train == 10


def test_an_adapter_without_rows_is_dropped_and_its_merge_replayed_from_what_remains():
    closure = [adapter("a1", [1]), adapter("a2", [2]), adapter("m", [1, 2], ["a1", "a2"])]
    assert actions(plan_repairs([1], closure, {1: 0, 2: 10})) == {"a1": "drop", "a2": "refit", "m": "replay"}


def test_a_run_that_goes_on_knows_which_parents_were_dropped_before():
    """The dropped one is erased: no edge of it is left, the merge still names it."""
    left = [adapter("a2", [2]), adapter("m", [1, 2], ["a1", "a2"])]
    assert actions(plan_repairs([1], left, {1: 0, 2: 10}, erased=["a1"])) == {"a2": "refit", "m": "replay"}
    assert actions(plan_repairs([1], left[1:], {1: 0}, erased=["a1", "a2"])) == {"m": "drop"}


def test_what_a_dropped_parent_left_in_its_shard_still_shapes_the_merge():
    merged, above = adapter("m", [1, 2], ["a2"], serves=[1, 2]), adapter("n", [1, 2, 3], ["m", "a3"], serves=[1, 2, 3])
    assert actions(plan_repairs([1], [merged, above], {1: 5, 2: 10, 3: 10})) == {"m": "replay", "n": "replay"}
    joined = adapter("m", [2, 3], ["a2", "a3"], serves=[1, 2, 3])
    assert actions(plan_repairs([1], [joined], {1: 5, 2: 10, 3: 10})) == {"m": "refit"}


def test_a_merge_of_dropped_parents_is_dropped():
    closure = [adapter("a1", [1]), adapter("m", [1], ["a1"])]
    assert actions(plan_repairs([1], closure, {1: 0})) == {"a1": "drop", "m": "drop"}


def test_a_mixture_is_trained_again_from_the_first_touched_shard_on():
    mixture = Adapter("m", "s", "g", AdapterState.SERVING, (1, 3, 5), (), (1, 2, 3, 4, 5), {"kind": "mixture"})
    rows = {1: 10, 2: 10, 3: 20, 4: 10, 5: 40}
    for touched, again, price in (([1], [1, 3, 5], 70), ([3], [3, 5], 60), ([4, 5], [5], 40)):
        plan = plan_repairs(touched, [mixture], rows)
        assert actions(plan) == {"m": "retrain"}
        assert plan.rows_to_train == price
        assert f"trained again on {again} in that order" in plan.repairs[0].reason
    joined = plan_repairs([2], [mixture], rows)
    assert (actions(joined), joined.rows_to_train) == ({"m": "refit"}, 0)


@given(st.sets(st.integers(1, 6)), st.lists(st.sets(st.integers(1, 6), min_size=1), max_size=5))
def test_whatever_saw_a_touched_shard_is_trained_again(touched, shards):
    closure = [adapter(f"a{n}", sorted(s)) for n, s in enumerate(shards)]
    plan = plan_repairs(sorted(touched), closure, dict.fromkeys(range(1, 7), 5))
    for found, action in zip(closure, actions(plan).values(), strict=True):
        assert (action == "retrain") is bool(touched & set(found.shard_ids))


def test_the_pause_before_a_failing_ticket_is_run_again_grows_to_an_hour():
    assert [pause_after(n).total_seconds() / 60 for n in (0, 1, 2, 3, 6, 7, 8, 10_000)] == [0, 1, 2, 4, 32, 60, 60, 60]
