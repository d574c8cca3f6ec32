"""What a deletion has to rebuild, and what that costs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from registry.records import Adapter


@dataclass(frozen=True, slots=True)
class Repair:
    adapter_id: str
    action: str
    """'retrain', 'replay', 'refit' or 'drop'."""
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    shard_ids: tuple[int, ...]
    repairs: tuple[Repair, ...]
    """Parents before children."""
    rows_to_train: int


LONGEST_PAUSE = timedelta(hours=1)


def pause_after(failures: int) -> timedelta:
    """How long a ticket waits for its next run: a minute after the first that failed, then twice as long each time."""
    return min(timedelta(minutes=1) * 2 ** min(failures - 1, 6), LONGEST_PAUSE) if failures else timedelta()


STRENGTH = ("refit", "replay", "retrain", "drop")


def plan_repairs(
    touched: Sequence[int],
    closure: Sequence[Adapter],
    rows: Mapping[int, int],
    begun: Sequence[Repair] = (),
    erased: Collection[str] = (),
) -> Plan:
    """Choose the repair of every adapter in the closure of the touched shards.

    `closure` comes parents first and includes adapters that only keep statistics of a touched shard; `rows` are the
    rows that remain in each shard. An adapter none of whose shards has a row left is dropped; a merged one is replayed
    from those parents that remain. `begun` is the plan of a run that was broken off, and `erased` names parents that it
    dropped: what it did has changed the lineage, so that today's alone would ask for less.
    """
    before = {repair.adapter_id: repair for repair in begun}
    shards, repairs, dropped = set(touched), list[Repair](), set(erased)
    changed = dropped | {repair.adapter_id for repair in begun if repair.action != "refit"}
    for adapter in closure:
        repair = _repair(adapter, shards, changed, dropped, rows)
        repair = max(repair, before.get(adapter.adapter_id, repair), key=lambda each: STRENGTH.index(each.action))
        repairs.append(repair)
        if repair.action == "drop":
            dropped.add(adapter.adapter_id)
        if repair.action != "refit":
            changed.add(adapter.adapter_id)
    retrained = [a for a, r in zip(closure, repairs, strict=True) if r.action == "retrain"]
    again = sum(rows.get(shard_id, 0) for adapter in retrained for shard_id in adapter.trained_from(shards))
    return Plan(tuple(sorted(shards)), tuple(repairs), again)


def _repair(
    adapter: Adapter, shards: set[int], changed: set[str], dropped: set[str], rows: Mapping[int, int]
) -> Repair:
    if adapter.parent_ids:
        left = [p for p in adapter.parent_ids if p not in dropped]
        if not left:
            return Repair(adapter.adapter_id, "drop", "every parent was dropped")
        # a parent that was dropped for want of rows left the others in the shard: the merge's descriptor rests on them
        if changed & set(adapter.parent_ids) or shards & set(adapter.shard_ids):
            return Repair(adapter.adapter_id, "replay", f"merged from {', '.join(adapter.parent_ids)}")
    elif shards & set(adapter.shard_ids):
        if not any(rows.get(s, 0) for s in adapter.shard_ids):
            return Repair(adapter.adapter_id, "drop", "no row of its shards remains")
        reason = f"trained on shards {sorted(shards & set(adapter.shard_ids))}"
        if adapter.is_mixture:
            again = list(adapter.trained_from(shards))
            reason += f"; its mixture is trained again on {again} in that order, and every statistic is taken anew"
        return Repair(adapter.adapter_id, "retrain", reason)
    return Repair(adapter.adapter_id, "refit", "keeps statistics of a touched shard; its weights never saw it")
