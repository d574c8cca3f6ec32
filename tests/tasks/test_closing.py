"""The guarantee is E0 or nothing."""

import pytest

from tasks.certificates import render_markdown, sign, verify
from tasks.closing import guarantee
from tests.tasks.test_certificates import KEY

RESOLVED = {"records": 3}
REBUILT = {"actions": {"a1": "retrain", "a2": "drop"}}
COMPARED = {"compared": {"adapter:a1": {"equal": True}, "shard:1": {"equal": True}}}
SWEPT = {"hits": 0, "markers": 9}


def test_everything_equal_and_nothing_found_is_e0():
    assert guarantee(RESOLVED, REBUILT, COMPARED, SWEPT) == "E0"
    assert guarantee({"records": 0}, {"actions": {}}, {"compared": {}}, {"hits": 0, "markers": 0}) == "E0"


@pytest.mark.parametrize(
    ("rebuilt", "compared", "swept"),
    [
        (REBUILT, {"compared": {**COMPARED["compared"], "shard:1": {"equal": False}}}, SWEPT),
        ({"actions": {"a1": "retrain", "a3": "replay"}}, COMPARED, SWEPT),
        (REBUILT, COMPARED, {"hits": 1, "markers": 9}),
        (REBUILT, COMPARED, {"hits": 0, "markers": 0}),
    ],
    ids=["a difference", "rebuilt and not compared", "a hit", "nothing to look for"],
)
def test_anything_else_is_no_guarantee(rebuilt, compared, swept):
    assert guarantee(RESOLVED, rebuilt, compared, swept) == "none"


def test_a_reader_sees_what_was_signed():
    content = {
        "ticket": "t-1",
        "stream": "mail",
        "guarantee": "none",
        "records": 3,
        "scope": "what was done",
        "received_at": "2026-11-01",
        "due_at": "2026-12-01",
        "certified_at": "2026-11-02",
        "targets": ["ab"],
        "closure": {"shards": [4], "repairs": [{"adapter_id": "mail-a1", "action": "retrain", "reason": "a | b"}]},
        "comparison": {"adapter:mail-a1": {"equal": False, "artifacts": 3}},
        "purge": {"objects": 7},
        "sweep": {"hits": 2, "markers": 9, "by_store": {"bucket x": 2}},
        "recipe_digest": "d",
        "previous_certificate": "0" * 64,
    }
    page = render_markdown(verify(sign(content, KEY)))
    assert "**Guarantee none** for 3 records" in page
    assert "| mail-a1 | retrain | a \\| b |" in page
    assert "| adapter:mail-a1 | 3 | DIFFERENT |" in page
    assert "2 hits for 9 markers" in page
