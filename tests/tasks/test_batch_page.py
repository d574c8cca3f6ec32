"""The page of a batch tells an operator what came, what shifted, what was decided and why, and what it did."""

from registry.records import (
    Batch,
    BatchState,
    Decision,
    DecisionKind,
    ModelVersion,
    Shard,
    Verdict,
    VersionState,
)
from registry.stream import Stream
from tasks.batch_page import SHOWN, Effect, batch_page

STREAM = Stream(name="mail", backbone="b", source="*")
VERSION = ModelVersion("mail", 4, "run", "key", 0, VersionState.READY, 0.9, "why")


def page(decision: Decision, promotion: Verdict | None = None, refused=(), stream=STREAM, **effect) -> str:
    shard = Shard(7, "b-9", "09", "staff", 60, 10, 60)
    batch = Batch(
        "b-9", "mail", "09", 9, "s3://inbox/09", BatchState.DONE, 60, sum(dict(refused).values()), 1, 0, (shard,)
    )
    nothing = {"version": None, "champion": 3, "served": 3, "before": {}, "after": {}, "names": {}, "links": []}
    return batch_page(stream, batch, [decision], promotion, dict(refused), Effect(**{**nothing, **effect}))


def test_a_held_batch_says_why_and_that_nothing_moved():
    held = Decision(DecisionKind.HOLD, None, "12 labelled rows are too few", 0.002)
    text = page(held, refused={"missing label": 2})
    assert text.startswith("# mail: 09: hold\n")
    assert "60 rows; 2 quarantined (2 × missing label), 1 suppressed" in text
    assert "p = 0.002 against alpha 0.01" in text
    assert "12 labelled rows are too few." in text
    assert "the model stays as it is" in text
    assert "| **serves** | version 3 |" in text


def test_of_a_mixture_the_page_tells_how_far_each_layer_has_shifted():
    """It said that there was no adapter to compare with: a mixture has no p-value."""
    mixed = Stream(name="mail", backbone="b", source="*", composition="mix")
    z_scores = {"4": {"mail-a1.0": 0.25, "mail-a1.1": 7.0}, "5": {"mail-a1.0": 1.5}}
    text = page(Decision(DecisionKind.EXPAND, "mail-a1", "layer 5 is strange", None, z_scores), stream=mixed)
    assert "| **shifted** | z = 0.25 in layer 4, 1.50 in layer 5, against mix.threshold 1 |" in text
    assert "no adapter to compare with" in page(Decision(DecisionKind.EXPAND, "mail-a1", "first"), stream=mixed)


def test_before_and_after_are_compared_on_the_rows_that_both_were_measured_on():
    before = {"b-8": (0.5, 0.4, 10)}
    after = {"b-7": (0.0, 0.0, 0), "b-8": (0.7, 0.4, 10), "b-9": (1.0, 0.6, 30)}
    text = page(
        Decision(DecisionKind.EXPAND, "mail-a2", "the batch differs"),
        Verdict(True, "better by 0.2"),
        version=VERSION,
        champion=4,
        before=before,
        after=after,
        names={"b-7": "07", "b-8": "08", "b-9": "09"},
        links=["[mail/4](http://mlflow/4)"],
    )
    assert (
        "0.500 → 0.700 on earlier batches (version 3 before); 0.925 on all 40 held-out rows (exact head 0.550)" in text
    )
    assert "| **serves** | version 4: better by 0.2 |" in text
    assert "| 07 |  |  |  | 0 |" in text, "nobody knows what became of it"
    assert "| 08 | 0.500 | 0.700 | 0.400 | 10 |" in text
    assert "| 09 |  | 1.000 | 0.600 | 30 |" in text
    assert "[mail/4](http://mlflow/4)" in text


def test_a_refused_version_says_how_to_overrule():
    refused = Verdict(False, "accuracy fell by 0.20")
    text = page(
        Decision(DecisionKind.REUSE, "mail-a1", "explained"),
        refused,
        version=VERSION,
        after={"b": (1, 1, 1)},
        names={"b": "09"},
    )
    assert (
        "version 3; version 4 waits as challenger: accuracy fell by 0.20. By hand: `deciduous promote mail 4`" in text
    )


def test_the_page_stays_short_while_the_stream_grows():
    z_scores = {"9": {f"mail-a{n}": float(n) for n in range(40)}}
    after = {f"b-{n}": (0.5, 0.5, 10) for n in range(300)}
    decision = Decision(DecisionKind.REUSE, "mail-a1", "explained", 0.5, z_scores)
    text = page(decision, Verdict(True, "no worse"), version=VERSION, after=after, names={b: b for b in after})
    assert text.count("\n") < 2 * SHOWN + 40
    assert "| mail-a0 | 0.00 |" in text
    assert "| 28 more, further away | |" in text
    assert "| 288 earlier ones |  | 0.500 | 0.500 | 2880 |" in text


def test_a_batch_whose_name_holds_a_bar_or_a_line_end_stays_in_its_cell():
    """It began another column, or ended the table."""
    decision, names = Decision(DecisionKind.REUSE, "mail-a1", "explained"), {"b": "a|b\nc"}
    lines = page(decision, version=VERSION, after={"b": (1, 1, 1)}, names=names).splitlines()
    assert r"| a\|b c |  | 1.000 | 1.000 | 1 |" in lines
