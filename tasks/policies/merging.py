"""Which adapters to merge, when, and in what order."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from registry.records import Adapter, labels_of

MAX_DEPTH = 2
MAX_COHORT = 50

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Excess:
    """A group with more serving adapters than the budget allows."""

    group: str
    serving: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike two adapters are, on held-out rows of their own shards."""

    shift: tuple[float, float]
    """Mean z-score of the second's rows under the first's descriptor, and the other way round; low is alike."""
    shared_labels: float
    """Share of all their labels that both know."""
    agreement: float | None = None
    """Share of their rows that both answer alike, where it was measured."""

    @property
    def reason(self) -> str:
        agreed = "" if self.agreement is None else f", they agree on {self.agreement:.0%} of their rows"
        return (
            f"z {self.shift[0]:.2f} one way and {self.shift[1]:.2f} the other, "
            f"{self.shared_labels:.0%} of their labels shared{agreed}"
        )


def find_excess(
    serving: Sequence[Adapter], max_adapters: int | None, passed_over: Collection[str] = ()
) -> Excess | None:
    """The first group over budget that was not passed over.

    A group is what callers see, so each has the whole budget; `max_adapters` None is no limit.
    """
    if max_adapters is None:
        return None
    for group in sorted({adapter.group for adapter in serving} - {*passed_over}):
        mine = tuple(adapter.adapter_id for adapter in serving if adapter.group == group)
        if len(mine) > max_adapters:
            return Excess(group, mine, f"{len(mine)} adapters serve, consolidation.max_adapters is {max_adapters}")
    return None


def mergeable_pairs(
    adapters: Sequence[Adapter],
    depth: Mapping[str, int],
    across: Collection[Collection[str]] = (),
    refused: Collection[tuple[Pair, int]] = (),
) -> list[Pair]:
    """Pairs of one group, or of groups that are named together in `across`, oldest first.

    A merge deeper than MAX_DEPTH or wider than MAX_COHORT shards would make every deletion beneath it expensive, so
    such pairs are left out, and so are those that were refused with as many shards as they serve now.
    """
    pairs = [(a, b) for n, a in enumerate(adapters) for b in adapters[n + 1 :]]
    return [
        (a.adapter_id, b.adapter_id)
        for a, b in pairs
        if may_merge(a, b, across)
        and excess_of_merge((a, b), depth) is None
        and ((a.adapter_id, b.adapter_id), cohort_of(a, b)) not in refused
    ]


def excess_of_merge(parents: Sequence[Adapter], depth: Mapping[str, int]) -> str | None:
    """By what a merge of them would be deeper than MAX_DEPTH or wider than MAX_COHORT shards; None where it is not."""
    level = 1 + max(depth.get(parent.adapter_id, 0) for parent in parents)
    if level > MAX_DEPTH:
        return f"it would be {level} merges deep, {MAX_DEPTH} is the most"
    shards = cohort_of(*parents)
    return f"it would serve {shards} shards, {MAX_COHORT} is the most" if shards > MAX_COHORT else None


def cohort_of(*parents: Adapter) -> int:
    """How many shards a merge would serve."""
    return len({shard_id for parent in parents for shard_id in parent.serves})


def closest_first(likeness: Mapping[Pair, Likeness]) -> list[Pair]:
    """Order by the sum of three ranks: shift (the worse way), shared labels, and agreement where it was measured.

    Ranks need no common unit and no weight. Ties go to the names.
    """
    measures = [
        {pair: max(each.shift) for pair, each in likeness.items()},
        {pair: -each.shared_labels for pair, each in likeness.items()},
    ]
    if all(each.agreement is not None for each in likeness.values()):
        measures.append({pair: -(each.agreement or 0.0) for pair, each in likeness.items()})
    places = [_ranks(measure) for measure in measures]
    return sorted(likeness, key=lambda pair: (sum(place[pair] for place in places), pair))


def _ranks(measure: Mapping[Pair, float]) -> dict[Pair, int]:
    """Equal values share the better rank."""
    ordered = sorted(measure.values())
    first = {value: rank for rank, value in reversed(list(enumerate(ordered)))}
    return {pair: first[value] for pair, value in measure.items()}


def may_merge(a: Adapter, b: Adapter, across: Collection[Collection[str]]) -> bool:
    """Within a group always; across groups only where the owner named all of them together."""
    labels = labels_of(a.group) | labels_of(b.group)
    return a.group == b.group or any(labels <= set(named) for named in across)
