"""A ticket is E0 or it says what is left."""

import pytest

from tasks.certificates import render_markdown, sign, verify
from tasks.closing import what_is_left
from tests.tasks.test_certificates import KEY

CLEAN = {
    "resolve": {"tickets": {"t-1": {"records": 3}, "t-2": {"records": 0}}},
    "rebuild": {"actions": {"a1": "retrain", "a2": "drop"}},
    "compare": {"compared": {"adapter:a1": {"equal": True}, "shard:1": {"equal": True}}},
    "purge": {"refused": []},
    "sweep": {"by_store": {"bucket x": 0}, "markers": {"t-1": 9, "t-2": 0}},
}


def test_everything_equal_and_nothing_found_is_e0():
    assert what_is_left("t-1", CLEAN) == []
    assert what_is_left("t-2", CLEAN) == []  # nothing to look for, and no record either


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"compare": {"compared": {"adapter:a1": {"equal": False}}}}, "adapter:a1 differs"),
        ({"rebuild": {"actions": {"a1": "retrain", "a3": "replay"}}}, "adapter:a3 was rebuilt and not compared"),
        ({"sweep": {"by_store": {"bucket x": 1}, "markers": {"t-1": 9}}}, "1 hits in bucket x"),
        ({"sweep": {"by_store": {}, "markers": {"t-1": 0}}}, "no marker"),
        ({"purge": {"refused": ["s3://b/k is held"]}}, "s3://b/k is held"),
    ],
    ids=["a difference", "rebuilt and not compared", "a hit", "nothing to look for", "a refusal"],
)
def test_anything_else_is_left(changes, left):
    (found,) = what_is_left("t-1", {**CLEAN, **changes})
    assert left in found


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
        "recipe_digest": "d",
        "previous_certificate": "0" * 64,
    }
    page = render_markdown(verify(sign(content, KEY)))
    assert "**Guarantee none** for 3 records" in page
    assert "| mail-a1 | retrain | a \\| b |" in page
    assert "| adapter:mail-a1 | 3 | DIFFERENT |" in page
    assert "2 hits for 9 markers" in page
    assert "* adapter:mail-a1 differs" in page
    assert "| approved | ann | 2026-11-02 |" in page
