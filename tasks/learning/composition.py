"""How the exact head and the adapters answer together, and who may take part.

Shapes: N records, L suffix blocks, D width, F head features, C classes, A adapters.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasks.learning.adapters import AdapterSpec, AdapterWeights
from tasks.learning.backbones import Backbone
from tasks.learning.descriptors import Descriptor, log_density, z_scores
from tasks.learning.features import SuffixPass, run_suffix
from tasks.learning.heads import ClassStatistics, Head, head_scores, solve_head
from tasks.learning.tensors import digest_of

RunSuffix = Callable[[Backbone, Sequence[Tensor], int, AdapterWeights | None], SuffixPass]

OTHERS = 0.3
"""What a row of another adapter's shard counts in an adapter's exact head; chosen on training rows."""

TEMPERATURE, LEAST_ODDS = 0.1, 0.1
"""Of the log density per coordinate when adapters share an answer, and the odds below which one is not visited."""

FAMILIAR = 3.0
"""Largest mean z-score at which a record still looks like an adapter's shard: three deviations, as is customary."""


@dataclass(frozen=True)
class AdapterEntry:
    """One serving adapter; `statistics` are those of the shards it serves, under this adapter.

    `frozen` are the statistics of the same shards on the frozen features; without them the exact head weighs all
    shards alike.
    """

    adapter_id: str
    group: str
    weights: AdapterWeights
    descriptor: Descriptor
    statistics: tuple[ClassStatistics, ...]
    frozen: tuple[ClassStatistics, ...] = ()


@dataclass(frozen=True)
class ServingModel:
    """All that a stream serves from; `frozen` are the statistics of the frozen features, by group, one per shard."""

    cut: int
    spec: AdapterSpec
    frozen: Mapping[str, tuple[ClassStatistics, ...]]
    adapters: tuple[AdapterEntry, ...]


@dataclass(frozen=True)
class Composed:
    """What one caller may use: heads solved from the shards of the caller's groups alone.

    `near_heads` are exact heads on the frozen features in which the shards of one adapter count in full and the others
    less; `adapter_heads` are solved from an adapter's own shards under that adapter.
    """

    cut: int
    labels: tuple[str, ...]
    head: Head
    adapters: tuple[AdapterEntry, ...]
    near_heads: tuple[Head, ...]
    adapter_heads: tuple[Head, ...]


@dataclass(frozen=True)
class Prediction:
    """`adapter_ids` names the likeliest adapter, None for the exact head alone; `visits` all that took part."""

    labels: list[str]
    scores_NC: Tensor
    adapter_ids: list[str | None]
    visits: list[tuple[str, ...]] = field(default_factory=list)


def compose(model: ServingModel, groups: Collection[str]) -> Composed:
    """Filter by entitlement, then solve: nothing of another group enters a head, a router or a label list."""
    frozen = [each for group in sorted(model.frozen) if group in groups for each in model.frozen[group]]
    if not frozen:
        raise ValueError(f"no shard of the groups {sorted(groups)} serves; ask for a group that has data")
    head = solve_head(frozen)
    entries = sorted((entry for entry in model.adapters if entry.group in groups), key=lambda entry: entry.adapter_id)
    near = tuple(_near_head(frozen, entry) for entry in entries)
    heads = tuple(solve_head(entry.statistics) for entry in entries)
    return Composed(model.cut, head.labels, head, tuple(entries), near, heads)


def _near_head(frozen: Sequence[ClassStatistics], entry: AdapterEntry) -> Head:
    own = {digest_of(each.to_tensors()) for each in entry.frozen}
    near = [not own or digest_of(each.to_tensors()) in own for each in frozen]
    return solve_head(frozen, weights=[1.0 if is_near else OTHERS for is_near in near])


def predict(
    backbone: Backbone, composed: Composed, states: Sequence[Tensor], run: RunSuffix = run_suffix
) -> Prediction:
    """Answer from the exact head and, where a record looks like an adapter's shard, from that adapter's heads too.

    A record's answer depends on that record and the adapters it visits only; `adapter_ids` names the likeliest of them.
    """
    suffix = run(backbone, states, composed.cut, None)
    scores_NC = head_scores(composed.head, suffix.features_NF)
    shares_AN = route(composed, suffix.signatures_LND)
    mixed_NC = torch.zeros_like(scores_NC)
    for number, entry in enumerate(composed.adapters):
        chosen = torch.nonzero(shares_AN[number]).flatten().tolist()
        if chosen:
            adapted = run(backbone, [states[i] for i in chosen], composed.cut, entry.weights)
            near_NC = head_scores(composed.near_heads[number], suffix.features_NF[chosen])
            own_NC = head_scores(composed.adapter_heads[number], adapted.features_NF)
            both_NC = combine(near_NC, own_NC, composed.labels, composed.adapter_heads[number].labels)
            mixed_NC[chosen] += shares_AN[number, chosen, None] * both_NC
    visiting_N = shares_AN.sum(0) > 0
    scores_NC = torch.where(visiting_N[:, None], mixed_NC, scores_NC)
    labels = [composed.labels[i] for i in scores_NC.argmax(1).tolist()]
    likeliest = shares_AN.argmax(0).tolist() if composed.adapters else [0] * len(states)
    pairs = zip(visiting_N.tolist(), likeliest, strict=True)
    ids = [composed.adapters[i].adapter_id if visits else None for visits, i in pairs]
    took_part = [
        tuple(entry.adapter_id for entry, share in zip(composed.adapters, shares, strict=True) if share > 0)
        for shares in shares_AN.mT.tolist()
    ]
    return Prediction(labels, scores_NC, ids, took_part)


def route(composed: Composed, signatures_LND: Tensor) -> Tensor:
    """(A, N) share of each adapter in each record's answer, zero where the record does not visit it.

    Adapters are compared by densities of their own. A record visits the likeliest among the familiar ones and those
    hardly less likely, so leaving an adapter out changes nothing for the records that do not visit it.
    """
    if not composed.adapters:
        return torch.zeros(0, signatures_LND.shape[1])
    descriptors = [entry.descriptor for entry in composed.adapters]
    density_AN = torch.stack([log_density(each, signatures_LND) for each in descriptors])
    shift_AN = torch.stack([z_scores(each, signatures_LND).mean(0) for each in descriptors])
    density_AN = density_AN.masked_fill(shift_AN > FAMILIAR, -torch.inf)
    odds_AN = torch.exp((density_AN - density_AN.amax(0).clamp_min(-1e9)) / TEMPERATURE)
    odds_AN = odds_AN.masked_fill(odds_AN < LEAST_ODDS, 0.0)
    # summed in the order of the adapters: a zero in between leaves the sum's bits alone
    total_N = torch.zeros(odds_AN.shape[1])
    for odds_N in odds_AN:
        total_N = total_N + odds_N
    return odds_AN / total_N.clamp_min(LEAST_ODDS)


def combine(near_NC: Tensor, own_NC: Tensor, labels: Sequence[str], own_labels: Sequence[str]) -> Tensor:
    """The mean of both heads' scores; where the adapter never met a class, the exact head's score stands for both."""
    columns = [labels.index(label) for label in own_labels]
    both_NC = near_NC.clone()
    both_NC[:, columns] = own_NC
    return (near_NC + both_NC) / 2
