"""The default: an exact head, and an adapter for each look, none of which depends on another shard's records."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.continual_stream import LEAST_HELD, Run, split_rows
from registry.records import DecisionKind, ShiftEvidence
from tasks.learning.adapters import AdapterSpec, AdapterWeights
from tasks.learning.banks import stacked
from tasks.learning.composition import AdapterEntry, Composed, KnownLook, ServingModel, answer_visits, compose, predict
from tasks.learning.descriptors import Descriptor, fit_descriptor, z_scores
from tasks.learning.features import SuffixPass, run_suffix
from tasks.learning.heads import ClassStatistics, class_statistics
from tasks.learning.shift import Sample, compare_samples
from tasks.learning.training import Recipe, train_slice
from tasks.policies.expansion import ShiftRule, choose_expansion
from tasks.policies.promotion import adapter_earns_its_place

GROUP = "all"
RULE = ShiftRule(alpha=0.01, min_rows=1, refresh_drop=1.0)  # the benchmark never refreshes: its shards are whole
PERMUTATIONS = 499
SHAPING = 0.5
"""How many of a batch's rows shape an adapter's weights. All of them join its statistics (docs/decisions/0100)."""


@dataclass(frozen=True)
class Met:
    """A batch as one adapter, or the frozen backbone, sees it; held-out rows shape neither `training` nor weights."""

    everything: ClassStatistics
    training: ClassStatistics
    held_NF: Tensor
    held_labels: list[str]


@dataclass
class Known:
    """An adapter so far: what it is made of, and the batches it has met, under it and under the frozen backbone."""

    weights: AdapterWeights
    descriptor: Descriptor
    met: list[Met] = field(default_factory=list)
    frozen: list[Met] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def run_default(run: Run, spec: AdapterSpec, recipe: Recipe, use_adapters: bool = True) -> None:
    """Take in every batch; without adapters this is the frozen probe, the exact head alone."""
    known: dict[str, Known] = {}
    frozen: list[Met] = []
    for number, batch in enumerate(run.batches):
        states = run.train_states(number)
        with run.meter.measure("train"):
            suffix = run_suffix(run.backbone, states, run.cut, keep_starts=use_adapters)
            frozen.append(_meet(suffix.features_NF, batch.train_labels, run.seed))
            if use_adapters:
                name = _decide(run, known, suffix.signatures_LND, number)
                if name is not None and name not in known:
                    known[name] = _expand(run, suffix, number, spec, recipe)
                if name is not None:
                    _join(run, known[name], suffix, frozen[-1], number)
            serving = _those_that_earn_their_place(run, spec, known, frozen)
        if use_adapters:
            run.decisions[-1]["serving"] = list(serving)
        else:
            run.nothing_decided()
        entries = tuple(_entry(name, k, lambda met: met.everything) for name, k in serving.items())
        waiting = tuple(KnownLook(name, GROUP, k.descriptor) for name, k in known.items() if name not in serving)
        tests = run.test_states(number)
        with run.meter.measure("inference"):
            statistics = tuple(met.everything for met in frozen)
            composed = compose(ServingModel(run.cut, spec, {GROUP: statistics}, entries, waiting), {GROUP})
            run.record([predict(run.backbone, composed, rows).labels for rows in tests])
    blocks = range(run.cut, run.backbone.num_blocks)
    run.adapters_by_layer = {str(block): len(known) for block in blocks} if known else {}
    run.trainable_parameters = sum(t.numel() for k in known.values() for t in k.weights.values())


def _meet(features_NF: Tensor, labels: list[str], seed: int) -> Met:
    train, held_out = split_rows(labels, seed)
    training = class_statistics(features_NF[train], [labels[i] for i in train])
    held_labels = [labels[i] for i in held_out]
    return Met(class_statistics(features_NF, labels), training, features_NF[held_out], held_labels)


def _entry(name: str, known: Known, part: Callable[[Met], ClassStatistics]) -> AdapterEntry:
    mine, theirs = (tuple(map(part, met)) for met in (known.met, known.frozen))
    return AdapterEntry(name, GROUP, known.weights, known.descriptor, mine, theirs)


def _those_that_earn_their_place(
    run: Run, spec: AdapterSpec, known: dict[str, Known], frozen: list[Met]
) -> dict[str, Known]:
    """The adapters that beat the exact head, each alone beside it, with heads that never met the held-out rows."""
    if not known:
        return {}
    entries = tuple(_entry(name, k, lambda met: met.training) for name, k in known.items())
    statistics = {GROUP: tuple(met.training for met in frozen)}
    judged = compose(ServingModel(run.cut, spec, statistics, entries), {GROUP})
    return {name: k for name, k in known.items() if _earns_its_place(judged.only((name,)), k)}


def _earns_its_place(composed: Composed, known: Known) -> bool:
    """Does the adapter beat the exact head on held-out rows of its shards?"""
    features_NF, adapted_NF = (torch.cat([met.held_NF for met in part]) for part in (known.frozen, known.met))
    labels = [label for met in known.frozen for label in met.held_labels]
    everyone = torch.ones(1, len(labels))
    with_it = answer_visits(composed, features_NF, everyone, adapted_NF).labels
    without = answer_visits(composed.alone(), features_NF, everyone[:0], adapted_NF[:0]).labels
    right = [sum(a == b for a, b in zip(answers, labels, strict=True)) / len(labels) for answers in (with_it, without)]
    return adapter_earns_its_place(right[0], right[1], len(labels)).passed


def _decide(run: Run, known: dict[str, Known], signatures_LND: Tensor, number: int) -> str | None:
    """The name of the adapter to reuse, or of the one to make; None where too few rows can be held out: then the batch
    joins the exact head alone."""
    labels = run.batches[number].train_labels
    _, held_out = split_rows(labels, run.seed)
    if len(held_out) < LEAST_HELD:
        why = f"{len(held_out)} of {len(labels)} rows can be held out, too few to measure a shift"
        told = {"decision": str(DecisionKind.HOLD.value), "adapter": None, "reason": why}
        run.decisions.append({**told, "p_value": None, "z_scores": {}})
        return None
    sample = Sample(as_sample(signatures_LND[:, held_out]), [labels[i] for i in held_out])
    evidence = []
    for name, adapter in known.items():
        reference = Sample(torch.cat(adapter.samples), adapter.labels)
        test = compare_samples(sample, reference, PERMUTATIONS, run.seed)
        z_L = z_scores(adapter.descriptor, signatures_LND[:, held_out]).mean(1)
        layers = {str(run.cut + i): round(float(z), 4) for i, z in enumerate(z_L)}
        evidence.append(
            ShiftEvidence(name, test.p_beyond_novelty, test.statistic, layers, test.novelty, compared=test.compared)
        )
    decision = choose_expansion(evidence, len(labels), RULE)
    adapter_id = decision.adapter_id if decision.kind is DecisionKind.REUSE else f"adapter-{number}"
    assert adapter_id is not None
    told = {"decision": str(decision.kind.value), "adapter": adapter_id, "reason": decision.reason}
    run.decisions.append({**told, "p_value": decision.p_value, "z_scores": decision.z_scores})
    return adapter_id


def _expand(run: Run, suffix: SuffixPass, number: int, spec: AdapterSpec, recipe: Recipe) -> Known:
    labels = run.batches[number].train_labels
    train, held_out = split_rows(labels, run.seed)
    shaping, _ = split_rows(labels, run.seed, 1 - SHAPING)  # among `train`: the same order of rows, cut elsewhere
    starts, names = [suffix.starts[i] for i in shaping], [labels[i] for i in shaping]
    state = train_slice(run.backbone, starts, names, run.cut, spec, recipe, run.seed)
    signatures_LND = suffix.signatures_LND
    return Known(state.adapter, fit_descriptor(signatures_LND[:, train], signatures_LND[:, held_out]))


def _join(run: Run, adapter: Known, suffix: SuffixPass, frozen: Met, number: int) -> None:
    """The batch becomes a shard that the adapter serves: its statistics join, exact under deletion."""
    labels = run.batches[number].train_labels
    everyone = [(i, "its own") for i in range(len(labels))]
    adapted_NF = stacked({"its own": adapter.weights}).features(run.backbone, suffix.starts, run.cut, everyone)
    adapter.met.append(_meet(adapted_NF, labels, run.seed))
    adapter.frozen.append(frozen)
    _, held_out = split_rows(labels, run.seed)
    adapter.samples.append(as_sample(suffix.signatures_LND[:, held_out]))
    adapter.labels += [labels[i] for i in held_out]


def as_sample(signatures_LND: Tensor) -> Tensor:
    """(N, L D): one row per record, its layers side by side."""
    return signatures_LND.transpose(0, 1).flatten(1)
