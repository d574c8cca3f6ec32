"""A ticket is E0 or it says what is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.certificates import render_markdown, sign, verify
from tasks.closing import what_is_left
from tasks.policies.guarantee import guarantee, hear_monitor
from tests.tasks.test_certificates import KEY

CLEAN = {
    "resolve": {
        "tickets": {"t-1": {"records": 3}, "t-2": {"records": 0}},
        "repairs": [{"adapter_id": "a1", "action": "retrain", "reason": ""}],
    },
    "rebuild": {"actions": {"a1": "retrain", "a2": "drop"}},
    "compare": {"compared": {"adapter:a1": {"equal": True}, "shard:1": {"equal": True}}},
    "purge": {"refused": []},
    "sweep": {"by_store": {"bucket x": 0}, "markers": {"t-1": 9, "t-2": 0}},
    "heard": {},
    "accepted": False,
    "unfinished": [],
}


AREA = {"auc": 0.51, "half_width": 0.11, "forgotten": 50, "unseen": 50}


def test_everything_equal_and_nothing_found_is_e0():
    assert what_is_left("t-1", CLEAN) == []
    assert what_is_left("t-2", CLEAN) == []  # nothing to look for, and no record either


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"compare": {"compared": {"adapter:a1": {"equal": False}}}}, "adapter:a1 differs"),
        ({"rebuild": {"actions": {"a1": "retrain", "a3": "replay"}}}, "adapter:a3 was rebuilt and not compared"),
        ({"rebuild": {"actions": {}}}, "adapter:a1 was not repaired (planned: retrain)"),
        ({"sweep": {"by_store": {"bucket x": 1}, "markers": {"t-1": 9}}}, "1 hits in bucket x"),
        ({"sweep": {"by_store": {}, "markers": {"t-1": 0}}}, "no marker"),
        ({"purge": {"refused": ["s3://b/k is held"]}}, "s3://b/k is held"),
        ({"rebuild": {"actions": {"a1": "suppress"}, "suppressed": {"a1": {}}}}, "a1 was suppressed"),
        ({"heard": {"alarms": ["AUC 0.9"]}}, "membership monitor, AUC 0.9"),
        ({"unfinished": ["ticket t-0 is not complete"]}, "ticket t-0"),
    ],
    ids=[
        "a difference",
        "rebuilt and not compared",
        "planned and not done",
        "a hit",
        "nothing to look for",
        "a refusal",
        "suppressed",
        "an alarm",
        "an earlier ticket",
    ],
)
def test_anything_else_is_left(changes, left):
    (found,) = what_is_left("t-1", {**CLEAN, **changes})
    assert left in found


def test_what_differs_within_the_noise_of_a_device_is_clean_and_no_e0():
    compared = {"adapter:a1": {"equal": False, "within_noise": True}}
    assert what_is_left("t-1", {**CLEAN, "compare": {"compared": compared}}) == []
    assert guarantee(exact=False, left=0, suppressed=0, served_clean=True) == "E1"


def test_an_alarm_that_a_person_looked_at_is_left_no_more():
    assert what_is_left("t-1", {**CLEAN, "heard": {"alarms": ["AUC 0.9"]}, "accepted": True}) == []


@given(st.booleans(), st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_what_was_suppressed_or_left_is_never_an_e(exact, left, suppressed, served_clean):
    level = guarantee(exact, left + suppressed, suppressed, served_clean)
    assert (level in {"E0", "E1"}) == level.startswith("E") == (left + suppressed == 0)  # E2 is never claimed
    assert (level == "A") == (suppressed > 0 and left == 0)


def test_a_monitor_says_nothing_with_few_records_and_speaks_up_with_many():
    assert hear_monitor(0.99, 9.0, 199).passed
    assert not hear_monitor(0.70, 4.1, 200).passed
    assert hear_monitor(0.55, 3.0, 200).passed


def test_a_reader_sees_what_was_signed():
    content = {
        "ticket": "t-1",
        "stream": "mail",
        "guarantee": "none",
        "left": ["adapter:mail-a1 differs"],
        "history": [{"what": "approved", "by": "ann", "at": "2026-11-02"}],
        "records": 3,
        "scope": "what was done",
        "received_at": "2026-11-01",
        "due_at": "2026-12-01",
        "certified_at": "2026-11-02",
        "targets": ["ab"],
        "closure": {"shards": [4], "repairs": [{"adapter_id": "mail-a1", "action": "retrain", "reason": "a | b"}]},
        "comparison": {"adapter:mail-a1": {"equal": False, "artifacts": 3}},
        "purge": {"objects": 7, "refused": []},
        "sweep": {"hits": 2, "markers": 9, "by_store": {"bucket x": 2}},
        "monitors": {
            "loss": AREA,
            "rmia": AREA,
            "before": {"loss": AREA, "rmia": AREA},
            "pooled": AREA,
            "alarms": ["x"],
        },
        "recipe_digest": "d",
        "previous_certificate": "0" * 64,
    }
    page = render_markdown(verify(sign(content, KEY)))
    assert "**Guarantee none** for 3 records" in page
    assert "| mail-a1 | retrain | a \\| b |" in page
    assert "| adapter:mail-a1 | 3 | DIFFERENT |" in page
    assert "2 hits for 9 markers" in page
    assert "* adapter:mail-a1 differs" in page
    assert "| after | 0.510 ± 0.110 | 0.510 ± 0.110 |" in page
    assert "* ALARM: x" in page
    assert "| approved | ann | 2026-11-02 |" in page
