import pytest

from tasks.policies.promotion import adapter_earns_its_place, merge_is_kept, version_clears_gates


@pytest.mark.parametrize(
    ("mine", "exact", "rows", "passed"), [(0.9, 0.8, 10, True), (0.8, 0.8, 10, False), (1, 0, 0, False)]
)
def test_an_adapter_must_beat_the_exact_head(mine, exact, rows, passed):
    assert adapter_earns_its_place(mine, exact, rows).passed is passed


@pytest.mark.parametrize(
    ("candidate", "champion", "passed"),
    [
        pytest.param({"a": (0.5, 10)}, {}, True, id="no champion"),
        pytest.param({"a": (0.9, 100)}, {"a": (0.9, 100)}, True, id="equal"),
        pytest.param({"a": (0.88, 100)}, {"a": (0.9, 100)}, False, id="accuracy drop"),
        pytest.param({"a": (1.0, 100), "b": (0.7, 10)}, {"a": (0.9, 100), "b": (0.9, 10)}, False, id="forgets b"),
        pytest.param(
            {"a": (1.0, 100), "b": (0.7, 10), "c": (0.0, 0)},
            {"a": (0.9, 100), "b": (0.9, 10), "c": (0.0, 0)},
            False,
            id="forgets b beside a batch without held-out rows",
        ),
        pytest.param({"c": (0.0, 0)}, {"c": (0.0, 0)}, True, id="no held-out row at all"),
        pytest.param({"a": (0.8, 10)}, {"a": (0.9, 10)}, True, id="one row of ten"),
        pytest.param({"a": (0.7, 10)}, {"a": (0.9, 10)}, False, id="two rows of ten"),
        pytest.param({"a": (0.9, 100), "b": (0.8, 10)}, {"a": (0.9, 100), "b": (0.9, 10)}, True, id="one row of b"),
        pytest.param({"a": (0.9, 100), "new": (0.1, 100)}, {"a": (0.9, 100)}, True, id="new batches are not compared"),
    ],
)
def test_version_gates(candidate, champion, passed):
    verdict = version_clears_gates(candidate, champion, accuracy_drop=0.01, forgetting=0.02)
    assert verdict.passed is passed, verdict.reason


def test_a_merge_is_judged_on_the_parent_that_loses_most():
    before = {"a": (0.9, 50), "b": (0.9, 50)}
    assert merge_is_kept(before, {"a": (0.95, 50), "b": (0.88, 50)}, 0.02).passed
    assert not merge_is_kept(before, {"a": (1.0, 50), "b": (0.85, 50)}, 0.02).passed
