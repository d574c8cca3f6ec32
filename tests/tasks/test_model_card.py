from dataclasses import replace
from io import BytesIO
from math import nan

import pytest

from infra import database
from registry import catalog, versions
from registry.figures import draw_accuracy, draw_growth, draw_shift
from registry.records import Decision, DecisionKind, ModelVersion, Shard, VersionState
from tasks.evaluation import Score
from tasks.model_card import DRAWN, _accuracies, _commands, _newest, accuracy_matrix, data_sets, nearest_looks
from tasks.registration import tell
from tests.registry.conftest import STREAM, add_batch


def rests_on(count: int, **of_first: int) -> tuple[dict, list[Shard]]:
    shards = [Shard(n, f"b{n}", f"2026-{n:02}", "all", 10, 2, 8) for n in range(count)]
    shards[0] = replace(shards[0], **of_first)
    return {"shards": [{"shard_id": n, "statistics": {"sha256": f"{n:064x}"}} for n in range(count)]}, shards


def test_the_newest_shards_are_named_and_all_before_them_are_one():
    sets = data_sets(*rests_on(DRAWN + 3, rows=100))
    assert [each.name for each in sets[:2]] == ["3 earlier shards", "2026-03/all"]
    assert len(sets) == 1 + DRAWN
    assert sets[0].profile == {"rows": 120, "held_out": 6, "labelled": 24}
    assert [each.name for each in data_sets(*rests_on(2))] == ["2026-00/all", "2026-01/all"]


def test_a_card_names_the_newest_batches_and_a_reason_the_first_groups():
    """A stream of many batches, or of many groups, is registered like any other."""
    assert _newest([]) == "-"
    assert _newest([f"b{n}" for n in range(DRAWN)]).startswith("b0, b1,")
    assert _newest([f"b{n}" for n in range(1000)]) == "988 earlier, " + ", ".join(f"b{n}" for n in range(988, 1000))
    decisions = [Decision(DecisionKind.EXPAND, f"mail-a{n}", "shifted") for n in range(30)]
    assert tell(decisions[:2]) == "expand mail-a0: shifted; expand mail-a1: shifted"
    assert tell(decisions).endswith("expand mail-a2: shifted; and 27 groups more")


def test_another_earlier_shard_is_another_data_set():
    manifest, shards = rests_on(DRAWN + 2)
    before = data_sets(manifest, shards)
    manifest["shards"][1]["statistics"]["sha256"] = "f" * 64
    after = data_sets(manifest, shards)
    assert before[0].digest != after[0].digest
    assert before[1:] == after[1:]


def test_a_figure_does_not_grow_with_the_adapters():
    """The nearest are drawn: a thousand of them side by side would be an image of a gigabyte that nobody can read."""
    many = {f"mail-a{n}": float(1000 - n) for n in range(1000)}
    decision = Decision(DecisionKind.EXPAND, "mail-a1000", "shifted", z_scores={"2": many, "3": {"mail-a7": 0.5}})
    shown = nearest_looks(decision)
    assert list(shown["2"]) == [f"mail-a{n}" for n in range(999, 999 - DRAWN, -1)]
    assert shown["3"] == {}
    assert max(draw_shift(shown).get_size_inches()) < 15


def test_a_batch_may_be_called_anything():
    names = ["cost_$5_$6", "a|b"]
    for figure in (
        draw_accuracy([(name, [0.5, 0.6]) for name in names], names),
        draw_growth({"adapters": [1, 2]}, names),
    ):
        figure.savefig(BytesIO(), format="png")


def test_names_with_bars_and_line_ends_stay_in_their_cells():
    shard = Shard(0, "b0", "a|b\nc", "x|y", 10, 2, 8)
    assert _accuracies([shard], {0: Score(2, 1.0, 1.0)}) == [r"| a\|b c | x\|y | 10 | 0.500 | 0.500 |"]


def test_what_no_held_out_row_measures_is_not_shown_as_all_wrong():
    shards = [Shard(n, f"b{n}", f"0{n}", "all", 10, 2 * (n > 0), 8) for n in range(DRAWN + 1)]
    lines = _accuracies(shards, {n: Score(2, 1.0, 1.0) if n > 1 else Score(0, 0, 0) for n in range(DRAWN + 1)})
    assert lines[:3] == [
        "| 1 earlier shards |  | 10 |  |  |",
        "| 01 | all | 10 |  |  |",
        "| 02 | all | 10 | 0.500 | 0.500 |",
    ]


def test_a_card_tells_how_to_describe_each_of_several_adapters_that_were_retired_together():
    assert _commands("batch:3f1c92ab77d0") == "`deciduous describe 3f1c92ab77d0`"
    assert _commands("retire:mail-a1+mail-a3") == "`deciduous describe mail-a1`, `deciduous describe mail-a3`"


def test_accuracies_stand_under_their_batch_whatever_a_deletion_took_and_in_whatever_order_they_were_learned(
    tmp_path, set_variable
):
    """The second batch was held and learned last; of the first no held-out row is left by then."""
    set_variable("DATABASE_URL", f"sqlite:///{tmp_path}/catalog.db")
    database.migrate()
    with database.transaction() as session:
        catalog.save_stream(session, STREAM, "digest")
        for name in ("a", "b", "c"):
            add_batch(session, name)
        for number, cause, cells in (
            (1, "a", [("a", 0.9, 0.8, 2)]),
            (2, "c", [("a", 0.7, 0.8, 2), ("c", 0.6, 0.5, 2)]),
            (3, "b", [("a", 0.0, 0.0, 0), ("b", 0.5, 0.5, 2), ("c", 0.4, 0.5, 2)]),
        ):
            found = ModelVersion("mail", number, "run", "key", 0, VersionState.READY, None, "for this test")
            versions.add_version(session, found, "sha", f"batch:{cause}")
            versions.add_accuracies(session, "mail", number, cells)
    names, rows = accuracy_matrix("mail", ["a", "b", "c"])
    assert (names, [name for name, _ in rows]) == (["a", "b", "c"], ["a", "c", "b"])
    expected = [[0.9, nan, nan], [0.7, nan, 0.6], [nan, 0.5, 0.4]]
    assert [cells for _, cells in rows] == [pytest.approx(each, nan_ok=True) for each in expected]
