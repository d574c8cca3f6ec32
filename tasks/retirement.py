"""Retire adapters that are no longer routed to, or by hand, and bring them back."""

from collections import Counter
from collections.abc import Collection, Mapping
from datetime import datetime

import torch
from sqlalchemy.orm import Session

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, contents, decision_log
from registry.errors import StateError
from registry.records import Adapter, AdapterState, Batch, BatchState, Decision, DecisionKind, Verdict, labels_of
from registry.stream import WHOLE, Stream
from tasks import blobs
from tasks.adapters import judge_adapter
from tasks.assembly import current_manifest, load_model
from tasks.evaluation import score_shards, total
from tasks.exclusion import still_alone
from tasks.learning.composition import visiting_shares
from tasks.learning.descriptors import Descriptor, side_by_side
from tasks.narration import say
from tasks.policies.promotion import merge_is_kept
from tasks.policies.retirement import Retirement, Routing, choose_retirements
from tasks.prediction_log import predictions_since
from tasks.release import refuse_condemned
from tasks.retries import step
from tasks.shift import KNOWN


@step("retire-unused-{stream.name}")
def retire_unused(stream: Stream) -> list[str]:
    """Retire what the last batches and callers do not ask for, where its own held-out rows do not lose by it.

    Returns the ids of the retired. The reasons and the figures are written down, of a refusal as well: after one an
    adapter is left in peace for a window, or each of an old season's would be measured after every batch.
    """
    if not stream.consolidates:
        return []  # documents are retrieved by Gaussians of another kind; a mixture answers as a whole
    rule, retired = stream.consolidation, []
    chosen = choose_retirements(measure_routing(stream), rule.retire_share, rule.window)
    numbers = _rules(stream)
    resting = _kept_lately(stream, numbers) if chosen else set()
    for unused in (each for each in chosen if each.adapter_id not in resting):
        verdict = may_go(stream, unused.adapter_id)
        with database.transaction() as session:
            still_alone(session, stream.name)
            if verdict.passed:
                adapter_rows.move_adapter(session, unused.adapter_id, AdapterState.RETIRED, unused.reason)
                retired.append(unused.adapter_id)
            decision_log.add_consolidation(session, stream.name, _decision(unused, verdict), numbers)
        say(f"  {unused.adapter_id} {'retired' if verdict.passed else 'stays'}: {unused.reason}; {verdict.reason}")
    return retired


def _rules(stream: Stream) -> dict[str, object]:
    return {"window": stream.consolidation.window, "merge_drop": stream.gates.merge_drop}


def _kept_lately(stream: Stream, numbers: Mapping[str, object]) -> set[str]:
    """Adapters that stayed or came back under the same rules, fewer batches ago than the window holds."""
    batches, found = set[str | None](), set[str]()
    with database.transaction() as session:
        for row in reversed(decision_log.decisions(session, stream.name)):
            batches |= {row.batch_id} - {None}
            if len(batches) >= stream.consolidation.window:
                break
            if row.kind == DecisionKind.KEEP and row.adapter_id and numbers.items() <= row.numbers.items():
                found.add(row.adapter_id)
    return found


def _decision(unused: Retirement, verdict: Verdict) -> Decision:
    kind = DecisionKind.RETIRE if verdict.passed else DecisionKind.KEEP
    return Decision(kind, unused.adapter_id, f"{unused.reason}; {verdict.reason}", alternatives=unused.figures)


def measure_routing(stream: Stream) -> list[Routing]:
    """How often each serving adapter took part in answers to the window's held-out rows and to callers since."""
    with database.transaction() as session:
        ages = contents.done_ages(session, stream.name)
        known = adapter_rows.adapters(session, stream.name, KNOWN)
        window = catalog.last_batches(session, stream.name, stream.consolidation.window, BatchState.DONE)
        since = catalog.received_at(session, window[0].batch_id) if window else None
    serving = [adapter for adapter in known if adapter.state == AdapterState.SERVING]
    if since is None or not serving:
        return []
    rows, visits = _held_out_visits(known, window)
    asked, answered = _logged_visits(stream.name, since)
    return [
        Routing(
            adapter_id=adapter.adapter_id,
            held_out_rows=rows[adapter.adapter_id],
            held_out_visits=visits[adapter.adapter_id],
            answered_rows=asked[adapter.group],
            answered_visits=answered[adapter.adapter_id],
            age=_age(adapter, ages),
        )
        for adapter in serving
    ]


def _age(adapter: Adapter, ages: Mapping[int, int]) -> int:
    """Batches since the newest one that shaped or joined the adapter; all of them where none did."""
    own = [ages[shard_id] for shard_id in (*adapter.shard_ids, *adapter.serves) if shard_id in ages]
    return min(own, default=max(ages.values(), default=-1) + 1)


def _held_out_visits(known: Collection[Adapter], window: list[Batch]) -> tuple[Counter[str], Counter[str]]:
    """Adapter -> rows that a caller of the row's own group could have had answered by it, and those that visit it."""
    rows, visits = Counter[str](), Counter[str]()
    # a shard that a ticket left no row to train on keeps no signatures of its held-out rows
    shards = [shard for batch in window for shard in batch.shards if shard.held_out and shard.labelled]
    for group in sorted({shard.group for shard in shards}):
        permitted = [a for a in known if group in labels_of(a.group)]
        seen = [blobs.load_tensors(s.node, "reference")["LND"] for s in shards if s.group == group]
        if not permitted or not seen:
            continue
        looks = [Descriptor.from_tensors(blobs.load_tensors(a.node, "descriptor")) for a in permitted]
        shares_KN = visiting_shares(side_by_side(looks), torch.cat(seen, 1))
        for adapter, visited in zip(permitted, (shares_KN > 0).sum(1).tolist(), strict=True):
            rows[adapter.adapter_id] += shares_KN.shape[1]
            visits[adapter.adapter_id] += visited
    return rows, visits


def _logged_visits(stream: str, since: datetime) -> tuple[Counter[str], Counter[str]]:
    """From the prediction log: group of an adapter -> rows of callers who could use it, adapter -> rows that did."""
    asked, answered = Counter[str](), Counter[str]()
    with database.transaction() as session:
        groups = {a.group for a in adapter_rows.adapters(session, stream)}
    for line in predictions_since(stream, since):
        asked.update({group: line["rows"] for group in groups if labels_of(group) <= set(line["groups"])})
        answered.update(line["adapters"])
    return asked, answered


def may_go(stream: Stream, adapter_id: str) -> Verdict:
    """The gate of a retirement: what the adapter serves loses no more without it than a merge may lose."""
    with database.transaction() as session:
        adapter = adapter_rows.get_adapter(session, adapter_id)
        serving = adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])
        served = [shard for shard in contents.shards(session, adapter.serves) if shard.rows]

    def reached(chosen: list[Adapter]) -> dict[str, tuple[float, int]]:
        model = load_model(current_manifest(stream, adapters=chosen))
        score = total(score_shards(stream, model, served, labels_of(adapter.group)).values())
        return {adapter_id: (score.accuracy, score.rows)}

    was, now = reached(serving), reached([each for each in serving if each.adapter_id != adapter_id])
    return merge_is_kept(was, now, stream.gates.merge_drop)


@step("retire-{adapter_id}")
def retire_adapter(adapter_id: str, reason: str) -> Adapter:
    """Stop serving an adapter; its blobs stay, because a deletion may have to replay what was merged from it.

    Raises StateError for a mixture."""
    refuse_mixture(adapter_id)
    with database.transaction() as session:
        before = adapter_rows.get_adapter(session, adapter_id)
        retired = adapter_rows.move_adapter(session, adapter_id, AdapterState.RETIRED, reason)
        if before.state in KNOWN:  # of a merge's parents the merge tells
            decision_log.add_consolidation(
                session, retired.stream, Decision(DecisionKind.RETIRE, adapter_id, reason), {}
            )
    say(f"  {adapter_id} retired: {reason}")
    return retired


def check_retire(adapter_id: str) -> None:
    """Raises what `retire_adapter` would raise, and StateError for an adapter that is retired: its reason stays."""
    refuse_mixture(adapter_id)
    with database.transaction() as session:
        adapter = adapter_rows.get_adapter(session, adapter_id)
    if adapter.state in (AdapterState.RETIRED, AdapterState.ERASED):
        raise StateError(f"{adapter_id!r} is {adapter.state} already: {adapter.reason}")


def refuse_mixture(adapter_id: str) -> None:
    with database.transaction() as session:
        adapter = adapter_rows.get_adapter(session, adapter_id)
    if adapter.is_mixture:
        raise StateError(
            f"{adapter_id!r} is the mixture of group {adapter.group!r} and is not retired: {WHOLE}; roll the stream "
            "back to an earlier version, or start one with `composition: retrieve`"
        )


@step("reinstate-{adapter_id}")
def reinstate_adapter(stream: Stream, adapter_id: str, reason: str) -> Verdict:
    """Judge a retired adapter again: it serves where it beats the exact head today, else it waits as a candidate. For a
    window it is not retired again: what it was brought back for has yet to come.

    Raises StateError where it is not retired, or where a merge of it, or what it was merged from, has taken its place,
    and SuppressedRecordError where a ticket has to rebuild it first.
    """
    with database.transaction() as session:
        adapter = _require_retired(session, stream, adapter_id)
        adapter_rows.move_adapter(session, adapter_id, AdapterState.CANDIDATE, reason)
        kept = Decision(DecisionKind.KEEP, adapter_id, f"reinstated: {reason}")
        decision_log.add_consolidation(session, stream.name, kept, _rules(stream))
        shard = contents.shards(session, adapter.serves)[0]
    return judge_adapter.fn(stream, shard, adapter_id)


def check_reinstate(stream: Stream, adapter_id: str) -> None:
    """Raises what `reinstate_adapter` would raise."""
    with database.transaction() as session:
        _require_retired(session, stream, adapter_id)


def _require_retired(session: Session, stream: Stream, adapter_id: str) -> Adapter:
    adapter = adapter_rows.get_adapter(session, adapter_id)
    # only merges and what they were merged from were trained on the same shard: one of them serves it
    known = [each for each in adapter_rows.adapters(session, stream.name, KNOWN) if each.adapter_id != adapter_id]
    rivals = [each.adapter_id for each in known if {*each.shard_ids} & {*adapter.shard_ids}]
    if adapter.state != AdapterState.RETIRED or rivals:
        why = f"{rivals[0]} has taken its place; retire that first" if rivals else f"it is {adapter.state}"
        raise StateError(f"adapter {adapter_id!r} cannot be reinstated: {why}")
    refuse_condemned(session, stream.name, [adapter])
    return adapter
