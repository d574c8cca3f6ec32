from registry.records import Adapter, AdapterState
from tasks.policies.merging import MAX_COHORT, MAX_DEPTH, may_merge, merge_candidates


def adapter(name: str, group="g", serves=(1,)) -> Adapter:
    return Adapter(name, "s", group, AdapterState.SERVING, serves, (), serves)


def test_the_closest_pair_of_one_group_comes_first():
    adapters = [adapter("a"), adapter("b"), adapter("c"), adapter("x", group="other")]
    distance = {("a", "b"): 0.3, ("a", "c"): 0.1, ("b", "c"): 0.2, ("a", "x"): 0.0}
    assert merge_candidates(adapters, distance, {}) == [("a", "c"), ("b", "c"), ("a", "b")]


def test_depth_and_cohort_are_bounded():
    wide = tuple(range(MAX_COHORT))
    adapters = [adapter("a"), adapter("deep"), adapter("wide", serves=wide), adapter("more", serves=(99, 100))]
    distance = {(a.adapter_id, b.adapter_id): 0.1 for n, a in enumerate(adapters) for b in adapters[n + 1 :]}
    pairs = merge_candidates(adapters, distance, {"deep": MAX_DEPTH})
    assert pairs == [("a", "more"), ("a", "wide")]


def test_groups_merge_only_where_all_of_them_are_named_together():
    a, b, ab, c = adapter("a", "red"), adapter("b", "blue"), adapter("ab", "blue\x1fred"), adapter("c", "green")
    assert not may_merge(a, b, ())
    assert not may_merge(a, b, [("red", "green")])
    assert may_merge(a, b, [("green", "red", "blue")])
    assert not may_merge(ab, c, [("red", "green"), ("blue", "green"), ("blue", "red")])
    assert merge_candidates([a, b, c], {("a", "b"): 0.1, ("a", "c"): 0.2}, {}, [("red", "blue")]) == [("a", "b")]
