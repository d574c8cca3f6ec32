"""Which adapters to merge, and in what order."""

from collections.abc import Collection, Mapping, Sequence

from registry.records import Adapter, labels_of

MAX_DEPTH = 2
MAX_COHORT = 50


def merge_candidates(
    adapters: Sequence[Adapter],
    distance: Mapping[tuple[str, str], float],
    depth: Mapping[str, int],
    across: Collection[Collection[str]] = (),
) -> list[tuple[str, str]]:
    """Pairs of one group, or of groups that are named together in `across`, that may be merged, closest first.

    A merge deeper than MAX_DEPTH or wider than MAX_COHORT shards would make every deletion beneath it expensive, so
    such pairs are left out. `distance` is keyed by (adapter, adapter) in the order given.
    """
    pairs = [(a, b) for n, a in enumerate(adapters) for b in adapters[n + 1 :]]
    allowed = [
        (a.adapter_id, b.adapter_id)
        for a, b in pairs
        if may_merge(a, b, across)
        and (a.adapter_id, b.adapter_id) in distance
        and max(depth.get(a.adapter_id, 0), depth.get(b.adapter_id, 0)) < MAX_DEPTH
        and len({*a.serves, *b.serves}) <= MAX_COHORT
    ]
    return sorted(allowed, key=lambda pair: (distance[pair], pair))


def may_merge(a: Adapter, b: Adapter, across: Collection[Collection[str]]) -> bool:
    """Within a group always; across groups only where the owner named all of them together."""
    labels = labels_of(a.group) | labels_of(b.group)
    return a.group == b.group or any(labels <= set(named) for named in across)
