"""How the exact head and the adapters answer together, and who may take part.

Shapes: N records, L suffix blocks, D width, F head features, C classes, A adapters.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from registry.records import labels_of
from tasks.learning.adapters import AdapterSpec, AdapterWeights, is_mixture
from tasks.learning.backbones import Backbone
from tasks.learning.banks import AdapterBank, stacked
from tasks.learning.descriptors import Descriptor, DescriptorBank, shift_and_density, side_by_side
from tasks.learning.features import Start, SuffixPass, run_suffix
from tasks.learning.heads import (
    ClassStatistics,
    Head,
    Sums,
    add_up,
    expand_rows,
    expanded_scores,
    solve_head,
    solve_sums,
)

Pairs = Sequence[tuple[int, str]]
"""Record number and adapter id."""

OTHERS = 0.3
"""What a row of another adapter's shard counts in an adapter's exact head; chosen on training rows."""

OWN = 0.3
"""The share of an adapter's own head in its answer, the rest being that exact head's; chosen on training rows."""

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
class KnownLook:
    """What an adapter that does not serve has met. Records that look like it are left to the exact head; without it
    they would visit the least unlike of the others."""

    adapter_id: str
    group: str
    descriptor: Descriptor


@dataclass(frozen=True)
class ServingModel:
    """All that a stream serves from; `frozen` are the statistics of the frozen features, by group, one per shard."""

    cut: int
    spec: AdapterSpec
    frozen: Mapping[str, tuple[ClassStatistics, ...]]
    adapters: tuple[AdapterEntry, ...]
    waiting: tuple[KnownLook, ...] = ()
    loaded: AdapterBank | None = None
    """The bank that the adapters' weights are views of, where they were loaded into one."""

    @cached_property
    def bank(self) -> AdapterBank:
        return self.loaded or stacked({entry.adapter_id: entry.weights for entry in self.adapters})


@dataclass(frozen=True)
class Composed:
    """What one caller may use: heads solved from the shards of the caller's groups alone, `everything` added up.

    `descriptors` holds those of the adapters, then those of the waiting ones.
    """

    cut: int
    labels: tuple[str, ...]
    head: Head
    adapters: tuple[AdapterEntry, ...]
    bank: AdapterBank
    descriptors: DescriptorBank | None
    everything: Sums
    solved: dict[str, tuple[Head, Head]] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    """Those of the caller's groups that have a shard."""

    def heads_of(self, number: int) -> tuple[Head, Head]:
        """Of one adapter, solved when a record first visits it: the exact head on the frozen features in which its
        shards count in full and the others less, and the head of its own shards under it."""
        entry = self.adapters[number]
        if entry.adapter_id not in self.solved:
            self.solved[entry.adapter_id] = (_near_head(self.everything, entry), solve_head(entry.statistics))
        return self.solved[entry.adapter_id]

    def alone(self) -> "Composed":
        """The exact head without an adapter beside it."""
        return self.only(())

    def only(self, adapter_ids: Collection[str]) -> "Composed":
        """As if only these adapters were known: nothing is solved again."""
        kept = [n for n, entry in enumerate(self.adapters) if entry.adapter_id in adapter_ids]
        return replace(
            self,
            adapters=tuple(self.adapters[n] for n in kept),
            descriptors=side_by_side([self.adapters[n].descriptor for n in kept]) if kept else None,
        )


@dataclass(frozen=True)
class Prediction:
    """`adapter_ids` names the likeliest adapter, None for the exact head alone; `visits` all that took part, `groups`
    the groups that could."""

    labels: list[str]
    scores_NC: Tensor
    adapter_ids: list[str | None]
    visits: list[tuple[str, ...]] = field(default_factory=list)
    groups: tuple[str, ...] = ()


def compose(model: ServingModel, groups: Collection[str]) -> Composed:
    """Filter by entitlement, then solve: nothing of another group enters a head, a router or a label list."""
    frozen = [each for group in sorted(model.frozen) if group in groups for each in model.frozen[group]]
    if not frozen:
        raise ValueError(f"no shard of the groups {sorted(groups)} serves; ask for a group that has data")
    everything = add_up(frozen)
    head = solve_sums(everything)
    permitted = [entry for entry in model.adapters if labels_of(entry.group) <= set(groups)]
    entries = sorted(permitted, key=lambda entry: entry.adapter_id)
    waiting = sorted(
        (look for look in model.waiting if labels_of(look.group) <= set(groups)), key=lambda look: look.adapter_id
    )
    known = [entry.descriptor for entry in entries] + [look.descriptor for look in waiting]
    descriptors = side_by_side(known) if entries else None
    held = tuple(sorted(set(groups) & set(model.frozen)))
    return Composed(model.cut, head.labels, head, tuple(entries), model.bank, descriptors, everything, groups=held)


def _near_head(everything: Sums, entry: AdapterEntry) -> Head:
    """Costs one shard's sums, not all of them again: adapters come and go, and each needs such a head."""
    return solve_sums(everything.blended(add_up(entry.frozen), OTHERS) if entry.frozen else everything)


@dataclass(frozen=True, slots=True)
class Passes:
    """How the blocks are run for an answer: once over all records, then once over all (record, adapter) pairs."""

    frozen: Callable[[Backbone, Sequence[Tensor], int], SuffixPass]
    adapted: Callable[[Backbone, Sequence[Tensor], Sequence[Start], int, AdapterBank, Pairs], Tensor]


def run_frozen(backbone: Backbone, states: Sequence[Tensor], cut: int) -> SuffixPass:
    return run_suffix(backbone, states, cut, keep_starts=True)


def run_adapted(
    backbone: Backbone, _states: Sequence[Tensor], starts: Sequence[Start], cut: int, bank: AdapterBank, pairs: Pairs
) -> Tensor:
    return bank.features(backbone, starts, cut, pairs)


AT_ONCE = Passes(run_frozen, run_adapted)


def predict(backbone: Backbone, composed: Composed, states: Sequence[Tensor], passes: Passes = AT_ONCE) -> Prediction:
    """Answer from the exact head and, where a record looks like an adapter's shard, from that adapter's heads too.

    A record's answer depends on that record and the adapters it visits only; `adapter_ids` names the likeliest of them.
    """
    return predict_each(backbone, [(composed, states)], passes)[0]


def predict_each(
    backbone: Backbone, requests: Sequence[tuple[Composed, Sequence[Tensor]]], passes: Passes = AT_ONCE
) -> list[Prediction]:
    """Answer several callers of one model in one pass; each sees what it would see alone, to the bit."""
    states = [state for _, own in requests for state in own]
    first = requests[0][0]
    frozen = passes.frozen(backbone, states, first.cut)
    ends = list(accumulate(len(own) for _, own in requests))
    mine = [range(end - len(own), end) for end, (_, own) in zip(ends, requests, strict=True)]
    shares = [
        route(composed, frozen.signatures_LND[:, rows.start : rows.stop])
        for rows, (composed, _) in zip(mine, requests, strict=True)
    ]
    pairs = [
        (rows[record], composed.adapters[number].adapter_id)
        for rows, shares_AN, (composed, _) in zip(mine, shares, requests, strict=True)
        for number, record in torch.nonzero(shares_AN[: len(composed.adapters)]).tolist()
    ]
    adapted_PF = passes.adapted(backbone, states, frozen.starts, first.cut, first.bank, pairs) if pairs else None
    answers, taken = [], 0
    for rows, shares_AN, (composed, _) in zip(mine, shares, requests, strict=True):
        visits = int((shares_AN[: len(composed.adapters)] != 0).sum())
        own_PF = adapted_PF[taken : taken + visits] if adapted_PF is not None else shares_AN.new_zeros(0, 0)
        answers.append(answer_visits(composed, frozen.features_NF[rows.start : rows.stop], shares_AN, own_PF))
        taken += visits
    return answers


def answer_visits(composed: Composed, features_NF: Tensor, shares_AN: Tensor, adapted_PF: Tensor) -> Prediction:
    """One caller's answers from features: rows of `adapted` are the visits, adapter by adapter."""
    count = len(composed.adapters)
    features_NE, adapted_PE = expand_rows(features_NF), expand_rows(adapted_PF) if len(adapted_PF) else adapted_PF
    exact_NC = expanded_scores(composed.head, features_NE)
    mixed_NC, taken = torch.zeros_like(exact_NC), 0
    for number, shares_N in enumerate(shares_AN[:count]):
        chosen = torch.nonzero(shares_N).flatten().tolist()
        if chosen:
            near, own = composed.heads_of(number)
            near_NC = expanded_scores(near, features_NE[chosen])
            own_NC = expanded_scores(own, adapted_PE[taken : taken + len(chosen)])
            mixed_NC[chosen] += shares_N[chosen, None] * combine(near_NC, own_NC, composed.labels, own.labels)
            taken += len(chosen)
    mixed_NC = mixed_NC + shares_AN[count:].sum(0)[:, None] * exact_NC
    visiting_N = (shares_AN[:count] > 0).any(0)
    scores_NC = torch.where(visiting_N[:, None], mixed_NC, exact_NC)
    labels = [composed.labels[i] for i in scores_NC.argmax(1).tolist()]
    took_part: list[list[str]] = [[] for _ in labels]
    for number, record in torch.nonzero(shares_AN[:count]).tolist():
        took_part[record].append(entry_id(composed, number))
    likeliest = shares_AN.argmax(0).tolist() if count else [count] * len(labels)
    pairs = zip(likeliest, visiting_N.tolist(), strict=True)
    ids = [entry_id(composed, i) if visits and i < count else None for i, visits in pairs]
    return Prediction(labels, scores_NC, ids, [tuple(ids) for ids in took_part], composed.groups)


def entry_id(composed: Composed, number: int) -> str:
    return composed.adapters[number].adapter_id


def route(composed: Composed, signatures_LND: Tensor) -> Tensor:
    """(A + waiting, N) share of each look in each record's answer, as `visiting_shares` has it."""
    if composed.descriptors is None:
        return torch.zeros(0, signatures_LND.shape[1])
    whole = any(is_mixture(entry.weights) for entry in composed.adapters)  # a mixture answers all of its group
    return visiting_shares(composed.descriptors, signatures_LND, math.inf if whole else FAMILIAR)


def visiting_shares(descriptors: DescriptorBank, signatures_LND: Tensor, familiar: float = FAMILIAR) -> Tensor:
    """(K, N) share of each look in each record's answer, zero where the record does not visit it.

    Adapters are compared by densities of their own. A record visits the likeliest among the familiar ones and those
    hardly less likely, so leaving an adapter out changes nothing for the records that do not visit it.
    """
    shift_KN, density_KN = shift_and_density(descriptors, signatures_LND)
    density_KN = density_KN.masked_fill(shift_KN > familiar, -torch.inf)
    odds_KN = torch.exp((density_KN - density_KN.amax(0).clamp_min(-1e9)) / TEMPERATURE)
    odds_KN = odds_KN.masked_fill(odds_KN < LEAST_ODDS, 0.0)
    # summed in the order of the adapters: a zero in between leaves the sum's bits alone
    total_N = torch.zeros(odds_KN.shape[1])
    for odds_N in odds_KN:
        total_N = total_N + odds_N
    return odds_KN / total_N.clamp_min(LEAST_ODDS)


def combine(near_NC: Tensor, own_NC: Tensor, labels: Sequence[str], own_labels: Sequence[str]) -> Tensor:
    """Both heads' scores by their shares; where the adapter never met a class, the exact head's score stands alone."""
    columns = [labels.index(label) for label in own_labels]
    both_NC = near_NC.clone()
    both_NC[:, columns] = torch.lerp(near_NC[:, columns], own_NC, OWN)
    return both_NC
