"""How the exact head and the adapters answer together, and who may take part.

Shapes: N records, L suffix blocks, D width, F head features, C classes, A adapters.
"""

# ruff: noqa: N815  fields carry shape suffixes too
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.learning.adapters import AdapterSpec, AdapterWeights
from tasks.learning.backbones import Backbone
from tasks.learning.descriptors import Descriptor, z_scores
from tasks.learning.features import run_suffix
from tasks.learning.heads import ClassStatistics, Head, head_scores, solve_head


@dataclass(frozen=True)
class AdapterEntry:
    """One serving adapter; `statistics` are those of the shards it serves, under this adapter."""

    adapter_id: str
    group: str
    weights: AdapterWeights
    descriptor: Descriptor
    statistics: tuple[ClassStatistics, ...]


@dataclass(frozen=True)
class ServingModel:
    """All that a stream serves from; `frozen` are the statistics of the frozen features, by group, one per shard."""

    cut: int
    spec: AdapterSpec
    frozen: Mapping[str, tuple[ClassStatistics, ...]]
    adapters: tuple[AdapterEntry, ...]


@dataclass(frozen=True)
class Composed:
    """What one caller may use: heads solved from the shards of the caller's groups alone."""

    cut: int
    labels: tuple[str, ...]
    head: Head
    adapters: tuple[AdapterEntry, ...]
    adapter_heads: tuple[Head, ...]


@dataclass(frozen=True)
class Prediction:
    """`adapter_ids` is None where the exact head alone answered."""

    labels: list[str]
    scores_NC: Tensor
    adapter_ids: list[str | None]


def compose(model: ServingModel, groups: Collection[str]) -> Composed:
    """Filter by entitlement, then solve: nothing of another group enters a head, a router or a label list."""
    frozen = [each for group in sorted(model.frozen) if group in groups for each in model.frozen[group]]
    if not frozen:
        raise ValueError(f"no shard of the groups {sorted(groups)} serves; ask for a group that has data")
    head = solve_head(frozen)
    entries = sorted((entry for entry in model.adapters if entry.group in groups), key=lambda entry: entry.adapter_id)
    heads = tuple(solve_head(entry.statistics) for entry in entries)
    return Composed(model.cut, head.labels, head, tuple(entries), heads)


def predict(backbone: Backbone, composed: Composed, states: Sequence[Tensor]) -> Prediction:
    """Answer from the exact head and, where a record looks like an adapter's shard, from that adapter's head too.

    A record's answer depends on that record and the adapters it visits only.
    """
    suffix = run_suffix(backbone, states, composed.cut)
    scores_NC = head_scores(composed.head, suffix.features_NF)
    visited_N = route(composed, suffix.signatures_LND)
    for number, entry in enumerate(composed.adapters):
        chosen = torch.nonzero(visited_N == number).flatten().tolist()
        if chosen:
            adapted = run_suffix(backbone, [states[i] for i in chosen], composed.cut, entry.weights)
            add_scores(scores_NC, composed.labels, chosen, composed.adapter_heads[number], adapted.features_NF)
    labels = [composed.labels[i] for i in scores_NC.argmax(1).tolist()]
    ids = [composed.adapters[i].adapter_id if i >= 0 else None for i in visited_N.tolist()]
    return Prediction(labels, scores_NC, ids)


def route(composed: Composed, signatures_LND: Tensor) -> Tensor:
    """(N,) number of the adapter that each record visits, -1 for none: the least shift from an adapter's shard."""
    if not composed.adapters:
        return torch.full((signatures_LND.shape[1],), -1)
    shift_AN = torch.stack([z_scores(entry.descriptor, signatures_LND).mean(0) for entry in composed.adapters])
    return shift_AN.argmin(0)


def add_scores(scores_NC: Tensor, labels: Sequence[str], chosen: list[int], head: Head, features_NF: Tensor) -> None:
    """Add an adapter head's scores, in place, to the columns of the classes it knows."""
    columns = torch.tensor([labels.index(label) for label in head.labels])
    rows = torch.tensor(chosen)[:, None]
    scores_NC[rows, columns] += head_scores(head, features_NF)
