import pytest

from tasks.policies.promotion import (
    Changes,
    adapter_earns_its_place,
    loss_is_chance,
    merge_is_kept,
    version_clears_gates,
)


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


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        pytest.param({}, True, id="nothing held out"),
        pytest.param({"a": Changes(184, lost=7, won=4)}, True, id="three rows of many that changed"),
        pytest.param({"a": Changes(28, lost=3)}, True, id="three rows, none won"),
        pytest.param({"a": Changes(10**6, lost=30_000, won=29_900)}, True, id="in a moment, however many rows"),
        pytest.param({"a": Changes(28, lost=4)}, False, id="four rows, none won"),
        pytest.param({"a": Changes(1000, lost=9)}, True, id="beyond chance, within the gate"),
        pytest.param({"a": Changes(100_000, lost=4000, won=2000)}, False, id="many rows"),
        pytest.param({"a": Changes(40, lost=8), "b": Changes(90, won=8)}, False, id="one batch is forgotten"),
        pytest.param(
            {"a": Changes(100, lost=9), "new": Changes(100, won=99)}, False, id="what is new is no comparison"
        ),
        pytest.param(
            {"a": Changes(100, lost=20), "new": Changes(100, won=99), "newer": Changes(100, won=9)},
            False,
            id="one batch since says otherwise",
        ),
        pytest.param(
            {"a": Changes(100, lost=20), "new": Changes(100, won=30), "newer": Changes(100, won=30, to_new=9)},
            True,
            id="a label means something else now",
        ),
        pytest.param(
            {"a": Changes(40, lost=8), "b": Changes(90, won=8), "new": Changes(9, won=7), "newer": Changes(9, won=6)},
            True,
            id="what one batch says has changed",
        ),
        pytest.param({"a": Changes(100, to_new=20), "new": Changes(100, newly_right=80)}, True, id="new labels pay"),
        pytest.param({"a": Changes(100, to_new=40, newly_right=10)}, False, id="new labels take more than they give"),
        pytest.param({"a": Changes(28, to_new=1)}, True, id="one row lost to new labels that answer nothing yet"),
        pytest.param({"a": Changes(100, lost=20, newly_right=80)}, False, id="what is forgotten is not paid for"),
    ],
)
def test_a_loss_that_is_no_more_than_chance_passes(changes, passed):
    verdict = loss_is_chance(changes, ["a", "b"], accuracy_drop=0.01, forgetting=0.02)
    assert verdict.passed is passed, verdict.reason


def test_a_loss_that_is_just_the_bound_passes_the_second_look_too():
    changes = {"a": Changes(100, lost=10), "b": Changes(100, lost=20)} | dict.fromkeys("cdefghij", Changes(100))
    assert loss_is_chance(changes, changes, accuracy_drop=0.5, forgetting=0.03).passed


def test_a_merge_is_judged_on_the_parent_that_loses_most():
    before = {"a": (0.9, 50), "b": (0.9, 50)}
    assert merge_is_kept(before, {"a": (0.95, 50), "b": (0.88, 50)}, 0.02).passed
    assert not merge_is_kept(before, {"a": (1.0, 50), "b": (0.85, 50)}, 0.02).passed


def test_a_champion_that_nobody_measured_is_not_said_to_be_none():
    """A version that stood in for what a ticket withdrew, and that a person promoted."""
    verdict = version_clears_gates({"a": (0.5, 10)}, {}, 0.01, 0.02)
    assert (verdict.passed, verdict.reason) == (True, "there was no measured champion to compare with")
