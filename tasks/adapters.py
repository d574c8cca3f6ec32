"""Train, refresh or join an adapter, fit what is closed form on it, and judge whether it may serve."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch

from infra import database
from registry import adapters as adapter_rows
from registry import contents, ownership
from registry.records import Adapter, AdapterState, Shard, StoredObject, Verdict, labels_of
from registry.sections import Composition
from registry.stream import Stream
from tasks import blobs, mixing
from tasks.assembly import current_manifest, load_model
from tasks.backbones import check_adapter, require_backbone
from tasks.evaluation import score_shards, total
from tasks.exclusion import still_alone
from tasks.forms import choose_form, load_weights
from tasks.learning.adapters import AdapterWeights
from tasks.learning.descriptors import fit_descriptor
from tasks.manifests import seen_by
from tasks.mixing import stored_pairs
from tasks.narration import say
from tasks.prefix_cache import states_of
from tasks.release import begin_work, check_epoch, storing
from tasks.retries import step
from tasks.rows import Row, held_out, trainable
from tasks.shards import load_rows, row_signatures, statistics_of
from tasks.training import means_of, train


@step("train-{adapter_id}")
def train_adapter(stream: Stream, shard: Shard, adapter_id: str) -> Adapter:
    """Expand: a new adapter, from the frozen backbone, on this shard alone; or the group's mixture, grown by it."""
    with database.transaction() as session:
        known = adapter_rows.find_adapter(session, adapter_id)
    kind = "mixture" if stream.composition == Composition.MIX else "trained"
    adapter = known or Adapter(
        adapter_id=adapter_id,
        stream=stream.name,
        group=shard.group,
        state=AdapterState.CANDIDATE,
        shard_ids=(),
        recipe={"kind": kind, **stream.adapter.model_dump()},
    )
    return _train_on(stream, adapter, shard)


@step("refresh-{adapter_id}")
def refresh_adapter(stream: Stream, shard: Shard, adapter_id: str) -> Adapter:
    """Train on, on the adapter's shard grown by this one; its earlier slices' checkpoints are kept."""
    with database.transaction() as session:
        adapter = adapter_rows.get_adapter(session, adapter_id)
    return _train_on(stream, adapter, shard)


def _train_on(stream: Stream, adapter: Adapter, shard: Shard) -> Adapter:
    grown = tuple(dict.fromkeys((*adapter.shard_ids, shard.shard_id)))
    served = tuple(dict.fromkeys((*adapter.serves, shard.shard_id)))
    epoch = begin_work(stream.name, {*grown, *served})
    return fit_trained(stream, replace(adapter, shard_ids=grown, serves=served), epoch, stream.tasks.processes)


@step("join-{adapter_id}-{shard.batch_id}")
def join_adapter(stream: Stream, shard: Shard, adapter_id: str) -> Adapter:
    """Reuse: the weights stay, the shard's labels join the statistics under this adapter."""
    with database.transaction() as session:
        adapter = adapter_rows.get_adapter(session, adapter_id)
    epoch = begin_work(stream.name, [shard.shard_id], [adapter])
    joined = replace(adapter, serves=tuple(dict.fromkeys((*adapter.serves, shard.shard_id))))
    stored = store_statistics(stream, joined, statistics_under(stream, [shard], load_weights(adapter)))
    with database.transaction() as session:
        check_epoch(session, stream.name, epoch, f"joining {shard.batch_name} to {adapter_id}")
        ownership.put_objects(session, stored)
        adapter_rows.put_adapter(session, joined)
    return joined


def fit_trained(stream: Stream, adapter: Adapter, epoch: int | None = None, processes: int = 1) -> Adapter:
    """Train an adapter on its shards and fit everything that hangs on its weights; `epoch` as in fit_closed_forms.

    Its recipe says on what it was trained. A deletion takes one process, whatever the stream asks for: E0 is about
    bytes, and several processes round otherwise."""
    require_backbone(stream)
    shards = [shard for shard in load_in_order(adapter.shard_ids) if shard.rows]
    trained = replace(adapter, recipe={**adapter.recipe, "trained_on": means_of(stream, processes)})
    if adapter.is_mixture:
        weights, grown = mixing.grow(stream, adapter, shards, epoch=epoch)
        trained = replace(trained, recipe={**trained.recipe, "grown": [asdict(each) for each in grown]})
    else:
        weights = train(stream, adapter.node, shards, epoch=epoch, processes=processes).adapter
    return fit_closed_forms(stream, trained, weights, epoch)


def fit_closed_forms(stream: Stream, adapter: Adapter, weights: AdapterWeights, epoch: int | None = None) -> Adapter:
    """Choose the form of the weights, store it with descriptor and statistics, and name all in one transaction.

    Raises BadWeightsError for weights that diverged, and StaleEpochError where a ticket took effect since `epoch`, at
    which the rows were read: nothing is named then.
    None is for the deletion itself, which holds the stream.
    """
    adapter, drafts = closed_forms(stream, adapter, weights)
    what = f"fitting {adapter.adapter_id}"
    with storing(stream.name, epoch, what):
        drafts.store()
        with database.transaction() as session:
            check_epoch(session, stream.name, epoch, what)
            ownership.put_objects(session, drafts.objects)
            adapter_rows.put_adapter(session, adapter)
    return adapter


def closed_forms(stream: Stream, adapter: Adapter, weights: AdapterWeights) -> tuple[Adapter, blobs.Drafts]:
    """The adapter with the form of its weights that was chosen, and what hangs on them: nothing is stored yet."""
    check_adapter(stream, weights, f"adapter {adapter.adapter_id}")
    where, drafts = blobs.prefix(stream.name, adapter.group), blobs.Drafts()
    with database.transaction() as session:
        shards = [s for s in contents.shards(session, {*adapter.serves, *adapter.shard_ids}) if s.rows]
    own = [shard for shard in shards if shard.shard_id in adapter.shard_ids]
    form = choose_form(stream, weights, lambda: rows_and_states(stream, own))
    adapter = replace(adapter, recipe={**adapter.recipe, "form": form.note})
    drafts.hold(where, adapter.node, "weights", form.stored)
    drafts.hold(where, adapter.node, "descriptor", descriptor_tensors(stream, own))
    if adapter.is_mixture:
        ordered = load_in_order(adapter.shard_ids)
        looks = mixing.looks_of(stream, adapter, weights, ordered, partial(stored_pairs, stream))
        drafts.hold(where, adapter.node, "looks", looks)
    for shard in shards:
        if shard.shard_id in adapter.serves:
            statistics = statistics_under(stream, [shard], form.weights)
            drafts.hold(where, adapter.node, f"statistics:{shard.shard_id}", statistics[shard.shard_id])
    return adapter, drafts


def rows_and_states(stream: Stream, shards: Sequence[Shard]) -> list[tuple[Row, torch.Tensor]]:
    rows = [row for shard in sorted(shards, key=lambda shard: shard.shard_id) for row in load_rows(shard)]
    return list(zip(rows, states_of(stream, rows), strict=True))


def descriptor_tensors(stream: Stream, shards: Sequence[Shard]) -> dict[str, torch.Tensor]:
    rows = [row for shard in shards for row in load_rows(shard)]
    fitted = fit_descriptor(row_signatures(stream, trainable(rows)), row_signatures(stream, held_out(rows)))
    return fitted.to_tensors()


def statistics_under(stream: Stream, shards: Sequence[Shard], weights: AdapterWeights) -> dict[int, blobs.Tensors]:
    """Shard -> its statistics under an adapter's weights."""
    return {shard.shard_id: statistics_of(stream, load_rows(shard), weights).to_tensors() for shard in shards}


def store_statistics(stream: Stream, adapter: Adapter, fitted: Mapping[int, blobs.Tensors]) -> list[StoredObject]:
    """Write shards' statistics under the adapter; the caller names them."""
    where = blobs.prefix(stream.name, adapter.group)
    return [blobs.store_tensors(where, adapter.node, f"statistics:{s}", tensors) for s, tensors in fitted.items()]


@step("judge-{adapter_id}")
def judge_adapter(stream: Stream, shard: Shard, adapter_id: str) -> Verdict:
    """Let the adapter serve where it beats the exact head (of documents: the backbone) on held-out rows; else it waits
    as a candidate."""
    with database.transaction() as session:
        adapter = adapter_rows.get_adapter(session, adapter_id)
        serving = adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])
        served = [s for s in contents.shards(session, adapter.serves) if s.rows]
    others = [a for a in serving if a.adapter_id != adapter_id]
    manifest = current_manifest(stream, extra_shards=[shard], adapters=[*others, adapter])
    held = labels_of(adapter.group)
    model = load_model(seen_by(manifest, held))
    score = total(score_shards(stream, model, served, held).values())
    verdict = score.earns_its_place()
    state = AdapterState.SERVING if verdict.passed else AdapterState.CANDIDATE
    with database.transaction() as session:
        still_alone(session, stream.name)
        moved = adapter_rows.move_adapter(session, adapter_id, state, verdict.reason)
        adapter_rows.put_adapter(session, replace(moved, accuracy=score.accuracy))
    say(f"  {adapter_id} is {state}: {verdict.reason}")
    return verdict


def erase_adapter(adapter: Adapter, reason: str) -> list[str]:
    """Forget everything an adapter holds; only its id, state and reason stay. Returns its blobs' keys."""
    with database.transaction() as session:
        keys = [stored.key for stored in ownership.objects_of(session, [adapter.node])]
        ownership.drop_objects(session, adapter.node)
        moved = adapter_rows.move_adapter(session, adapter.adapter_id, AdapterState.ERASED, reason)
        adapter_rows.put_adapter(
            session, replace(moved, shard_ids=(), parent_ids=(), serves=(), recipe={}, accuracy=None)
        )
    blobs.purge_unowned(keys)
    return keys


def measure_reuse(stream: Stream, shard: Shard, adapter_id: str) -> tuple[float | None, float | None]:
    """(held-out accuracy on the shard with its statistics joined, the adapter's accuracy on its own rows).

    Nothing is expected of a merged adapter, whose weights are its parents', or of a mixture: neither trains on.
    """
    with database.transaction() as session:
        adapter = adapter_rows.get_adapter(session, adapter_id)
        serving = adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])
    model = load_model(seen_by(current_manifest(stream, extra_shards=[shard], adapters=serving), {shard.group}))
    score = score_shards(stream, model, [shard])[shard.shard_id]
    trains_on = not adapter.parent_ids and not adapter.is_mixture
    return (score.accuracy if score.rows else None), adapter.accuracy if trains_on else None


def measure_own(stream: Stream, shard: Shard, adapter_id: str) -> float:
    """What the adapter reaches on its own rows now, before the shard: labels that came since it was judged take rows of
    its own too."""
    with database.transaction() as session:
        serves = adapter_rows.get_adapter(session, adapter_id).serves
        serving = adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])
        own = [s for s in contents.shards(session, serves) if s.rows and s.shard_id != shard.shard_id]
    before = [replace(a, serves=tuple(s for s in a.serves if s != shard.shard_id)) for a in serving]
    model = load_model(seen_by(current_manifest(stream, adapters=before), {each.group for each in own}))
    return total(score_shards(stream, model, own).values()).accuracy


def load_in_order(shard_ids: Sequence[int]) -> list[Shard]:
    """These shards in the order given, each once."""
    with database.transaction() as session:
        by_id = {shard.shard_id: shard for shard in contents.shards(session, shard_ids)}
    return [by_id[shard_id] for shard_id in dict.fromkeys(shard_ids)]
