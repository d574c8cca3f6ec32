from hypothesis import given
from hypothesis import strategies as st

from registry.records import Adapter, AdapterState
from tasks.policies.merging import (
    MAX_COHORT,
    MAX_DEPTH,
    Likeness,
    closest_first,
    excess_of_merge,
    find_excess,
    may_merge,
    mergeable_pairs,
)


def adapter(name: str, group="g", serves=(1,)) -> Adapter:
    return Adapter(name, "s", group, AdapterState.SERVING, serves, (), serves)


def test_only_pairs_of_one_group_may_be_merged():
    adapters = [adapter("a"), adapter("b"), adapter("c"), adapter("x", group="other")]
    assert mergeable_pairs(adapters, {}) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_depth_and_cohort_are_bounded():
    wide = tuple(range(MAX_COHORT))
    adapters = [adapter("a"), adapter("deep"), adapter("wide", serves=wide), adapter("more", serves=(99, 100))]
    pairs = mergeable_pairs(adapters, {"deep": MAX_DEPTH})
    assert pairs == [("a", "wide"), ("a", "more")]
    assert excess_of_merge(adapters[:2], {"deep": MAX_DEPTH}) == "it would be 3 merges deep, 2 is the most"
    assert excess_of_merge(adapters[2:], {}) == "it would serve 52 shards, 50 is the most"


def test_a_refused_pair_waits_until_it_serves_another_shard():
    refused = [(("a", "b"), 2)]
    assert mergeable_pairs([adapter("a", serves=(1,)), adapter("b", serves=(2,))], {}, (), refused) == []
    assert mergeable_pairs([adapter("a", serves=(1, 3)), adapter("b", serves=(2,))], {}, (), refused) == [("a", "b")]


def test_the_closest_by_shift_labels_and_agreement_comes_first():
    near = Likeness((0.2, 0.3), shared_labels=1.0, agreement=0.9)
    assert closest_first({("a", "b"): Likeness((0.1, 5.0), 0.0, 0.5), ("a", "c"): near}) == [("a", "c"), ("a", "b")]
    # a shift that is small one way only is no closeness, and agreement decides between equals
    equals = {("a", "b"): Likeness((1, 1), 0.5, 0.6), ("a", "c"): Likeness((1, 1), 0.5, 0.8)}
    assert closest_first(equals) == [("a", "c"), ("a", "b")]


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1)), min_size=1, max_size=8))
def test_a_pair_that_is_closest_in_everything_is_first(measures):
    likeness = {("a", f"b{n}"): Likeness((x, y), shared) for n, (x, y, shared) in enumerate(measures)}
    likeness["best", "best"] = Likeness((-6, -6), 2.0)
    assert closest_first(likeness)[0] == ("best", "best")


def test_each_group_has_the_whole_budget():
    serving = [adapter(name, group) for group in "gh" for name in (f"{group}1", f"{group}2")]
    assert find_excess(serving, None) is None
    assert find_excess(serving, 2) is None
    excess = find_excess([*serving, adapter("h3", "h")], 2)
    assert excess is not None
    assert (excess.group, excess.serving) == ("h", ("h1", "h2", "h3"))
    assert "3 adapters serve, consolidation.max_adapters is 2" in excess.reason
    assert find_excess([*serving, adapter("h3", "h")], 2, passed_over=["h"]) is None


def test_groups_merge_only_where_all_of_them_are_named_together():
    a, b, ab, c = adapter("a", "red"), adapter("b", "blue"), adapter("ab", "blue\x1fred"), adapter("c", "green")
    assert not may_merge(a, b, ())
    assert not may_merge(a, b, [("red", "green")])
    assert may_merge(a, b, [("green", "red", "blue")])
    assert not may_merge(ab, c, [("red", "green"), ("blue", "green"), ("blue", "red")])
    assert mergeable_pairs([a, b, c], {}, [("red", "blue")]) == [("a", "b")]
