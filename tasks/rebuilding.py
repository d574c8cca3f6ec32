"""The middle of a deletion: drop the rows, and rebuild what they shaped, parents before children."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, contents, holding, ownership, tickets
from registry.records import Adapter, AdapterState, Shard, Ticket
from registry.stream import Stream
from tasks import mixing, prefix_cache, shards
from tasks.adapters import (
    erase_adapter,
    fit_closed_forms,
    fit_trained,
    load_in_order,
    statistics_under,
    store_statistics,
)
from tasks.backbones import open_frozen
from tasks.consolidation import merged_weights
from tasks.forgetting import plan_for
from tasks.forms import load_weights
from tasks.identity import catalog_key
from tasks.narration import say
from tasks.policies.forgetting import Repair
from tasks.retries import step
from tasks.rows import Row, count_rows, trainable
from tasks.saga import Detail, once
from tasks.suppressing import Report, suppress_adapter
from tasks.tickets import APPROXIMATE, find_records
from tasks.training import stages_of

Targets = Collection[tuple[str, str]]

LEFT = "; deleted records have left its rows since"
"""Ends an adapter's reason, which may count them, until it is judged again."""


@step("drop-{together[0].ticket_id}")
def drop(stream: Stream, together: Sequence[Ticket], resolved: Detail) -> Detail:
    """Drop the rows and solve the shards' closed forms again: from here on the exact head is clean."""

    def work() -> Detail:
        with database.transaction() as session:
            targets = set(tickets.targets_of(session, *(ticket.ticket_id for ticket in together)))
            touched = contents.shards(session, resolved["shards"])
            known = find_records(session, targets)
        before = block_evaluations(stream)
        for shard in touched:
            drop_rows(stream, shard, targets, known.get(shard.shard_id, ()))
        for batch_id in resolved["batches"]:
            drop_quarantined(stream, batch_id, targets)
        return {"block_evaluations": block_evaluations(stream) - before}

    return once(together, "drop", work)


@step("rebuild-{together[0].ticket_id}")
def rebuild(stream: Stream, together: Sequence[Ticket], resolved: Detail, dropped: Detail) -> Detail:
    """Repair the adapters of the closure: parents before children."""

    def work() -> Detail:
        before, done, suppressed = block_evaluations(stream), _dropped_before(resolved), dict[str, Any]()
        approximate = is_approximate(together)
        # asked again until nothing is left: a merge may have come in since the closure was resolved
        while repairs := _open_repairs(stream, resolved, done):
            for repair in repairs:
                say(f"  {repair.action} {repair.adapter_id}: {repair.reason}")
                report = suppress_instead(stream, repair, together) if approximate else None
                if report is None:
                    done[repair.adapter_id] = repair_adapter(stream, repair, resolved["shards"])
                else:
                    done[repair.adapter_id], suppressed[repair.adapter_id] = "suppress", report
        return {
            "rebuilt": sum(action in ("retrain", "replay") for action in done.values()),
            "actions": done,
            "suppressed": suppressed,
            "block_evaluations": dropped["block_evaluations"] + block_evaluations(stream) - before,
        }

    return once(together, "rebuild", work)


def block_evaluations(stream: Stream) -> int:
    """Rows times blocks that this process has run so far, forwards and backwards: a price that no clock distorts."""
    work = open_frozen(stream).work
    return work.forwards + work.backwards


def _open_repairs(stream: Stream, resolved: Detail, done: Mapping[str, str]) -> list[Repair]:
    begun = [Repair(**repair) for repair in resolved["repairs"]]
    with database.transaction() as session:
        plan = plan_for(session, stream.name, dict.fromkeys(resolved["shards"], 0), begun)
    return [repair for repair in plan.repairs if repair.adapter_id not in done]


def _dropped_before(resolved: Detail) -> dict[str, str]:
    """What a run that was broken off erased of its plan."""
    with database.transaction() as session:
        planned = adapter_rows.get_adapters(session, [repair["adapter_id"] for repair in resolved["repairs"]])
    return {adapter.adapter_id: "drop" for adapter in planned if adapter.state == AdapterState.ERASED}


def drop_rows(stream: Stream, shard: Shard, targets: Targets, known: Sequence[int]) -> None:
    """Rewrite a shard without the targets, and fit its closed forms on what is left.

    `known` are the catalog's keys of the targets: all of them go, also where the rows went before."""
    rows = shards.load_rows(shard)
    gone = [row for row in rows if is_named(row, targets)]
    left = [row for row in rows if not is_named(row, targets)]
    keys = {*known, *(catalog_key(row.record) for row in gone)}
    prefix_cache.purge(stream.name, [row.record for row in gone])
    with database.transaction() as session:
        tickets.forget_records(session, sorted(keys), {shard.shard_id: count_rows(left)})
        holding.finish_emptied(session, shard.batch_id)
        ownership.put_object(session, shards.store_rows(stream, shard, left))
        if not trainable(left):
            ownership.drop_object(session, shard.node, "statistics")
            ownership.drop_object(session, shard.node, "reference")
    if trainable(left):
        shards.fit_shard(stream, shard)


def drop_quarantined(stream: Stream, batch_id: str, targets: Targets) -> None:
    """Take the targets' lines out of a batch's list of refused rows."""
    with database.transaction() as session:
        batch = catalog.get_batch(session, batch_id)
    listed = shards.load_quarantine(batch)
    left = [row for row in listed if not shards.is_refused(row, targets)]
    with database.transaction() as session:
        ownership.put_object(session, shards.store_quarantine(stream, batch, left))


def is_named(row: Row, targets: Targets) -> bool:
    return ("subject", row.subject) in targets or ("record", row.record) in targets


def repair_adapter(stream: Stream, repair: Repair, touched: Sequence[int]) -> str:
    """Carry out one repair of the plan; afterwards nothing of the adapter rests on a dropped row.

    Returns what was done: 'drop' instead of the plan's action where too few rows remain to fit anything on.
    """
    with database.transaction() as session:
        adapter = adapter_rows.get_adapter(session, repair.adapter_id)
    adapter = _without_what_left(adapter)
    if repair.action == "drop" or not _can_be_fitted(adapter):
        erase_adapter(adapter, "too few of its rows remain")
        return "drop"
    if repair.action == "retrain":
        adapter = fit_trained(stream, adapter)
        _drop_stale_checkpoints(stream, adapter)
    elif repair.action == "replay":
        _replay(stream, adapter)
    else:
        refit = [shard for shard in load_in_order(adapter.serves) if shard.shard_id in touched]
        stored = store_statistics(stream, adapter, statistics_under(stream, refit, load_weights(adapter)))
        with database.transaction() as session:
            ownership.put_objects(session, stored)
            adapter_rows.put_adapter(session, adapter)
    return repair.action


def is_approximate(together: Sequence[Ticket]) -> bool:
    """Only where each of the tickets asks for it: exact work is good for all of them."""
    with database.transaction() as session:
        return all(tickets.done_step(session, t.ticket_id, APPROXIMATE) is not None for t in together)


def suppress_instead(stream: Stream, repair: Repair, together: Sequence[Ticket]) -> Report | None:
    """Suppress an adapter that should be trained again; None where that is not what it needs, or cannot be done."""
    with database.transaction() as session:
        adapter = adapter_rows.get_adapter(session, repair.adapter_id)
    adapter = _without_what_left(adapter)
    if repair.action != "retrain" or not _can_be_fitted(adapter):
        return None
    report = suppress_adapter(stream, adapter, together)
    if report is not None:
        _drop_stale_checkpoints(stream, adapter)
    return report


def _without_what_left(adapter: Adapter) -> Adapter:
    """Without the shards that have no row to train on left: no statistics, reference or slice rests on them. Its
    accuracy is that of the last judgement, which the next one replaces."""
    full = {shard.shard_id for shard in load_in_order((*adapter.shard_ids, *adapter.serves)) if shard.labelled}
    with database.transaction() as session:
        for shard_id in {*adapter.serves} - full:
            ownership.drop_object(session, adapter.node, f"statistics:{shard_id}")
    trained, served = (tuple(s for s in ids if s in full) for ids in (adapter.shard_ids, adapter.serves))
    return replace(adapter, shard_ids=trained, serves=served, reason=adapter.reason.removesuffix(LEFT) + LEFT)


def _can_be_fitted(adapter: Adapter) -> bool:
    """A descriptor needs two training rows and two held-out ones, and a merge a parent: one by one they may have too
    few rows where together they have enough."""
    own = load_in_order(adapter.shard_ids)
    enough = sum(shard.labelled for shard in own) >= 2 and sum(shard.held_out for shard in own) >= 2
    return enough and (not adapter.parent_ids or bool(_parents_left(adapter)))


def _parents_left(adapter: Adapter) -> list[Adapter]:
    with database.transaction() as session:
        parents = adapter_rows.get_adapters(session, adapter.parent_ids)
    return [parent for parent in parents if parent.shard_ids]


def _replay(stream: Stream, adapter: Adapter) -> None:
    """Run the recorded merge again on clean parents, in the recorded order; erased parents leave it."""
    left = _parents_left(adapter)
    shares = adapter.recipe["shares"]
    if len(left) < len(adapter.parent_ids):
        shares = [1 / len(left)] * len(left)
    recipe = {**adapter.recipe, "shares": shares}
    clean = replace(adapter, parent_ids=tuple(p.adapter_id for p in left), recipe=recipe)
    fit_closed_forms(stream, clean, merged_weights(left, recipe))


def _drop_stale_checkpoints(stream: Stream, adapter: Adapter) -> None:
    """Keep the checkpoints of today's slices; those that saw a dropped row lose their owner and are purged."""
    own = load_in_order(adapter.shard_ids)
    current = (
        mixing.checkpoints_of(stream, adapter, own)
        if adapter.is_mixture
        else {f"checkpoint:{stage.digest}" for stage in stages_of(stream, own)}
    )
    with database.transaction() as session:
        for stored in ownership.objects_of(session, [adapter.node]):
            if stored.kind.startswith("checkpoint:") and stored.kind not in current:
                ownership.drop_object(session, adapter.node, stored.kind)
