from dataclasses import replace

from registry.records import Shard
from tasks.model_card import DRAWN, data_sets


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


def test_another_earlier_shard_is_another_data_set():
    manifest, shards = rests_on(DRAWN + 2)
    before = data_sets(manifest, shards)
    manifest["shards"][1]["statistics"]["sha256"] = "f" * 64
    after = data_sets(manifest, shards)
    assert before[0].digest != after[0].digest
    assert before[1:] == after[1:]
