"""What keeping 64 adapters to a budget costs beside evaluation: `python -m benchmarks.consolidation [--json]`.

Descriptors and adapters of MiniLM's size with random numbers. Merges the closest pairs until the budget holds, as
`flows.consolidate` does: descriptors all against all, the order, the merge, its compression and the merged descriptor.
Store, statistics and accuracies are left out; they are evaluation and I/O. CPU seconds of one thread.
"""

import argparse
import time

import torch

from benchmarks.running import tell
from registry.records import Adapter, AdapterState
from tasks.learning.adapters import AdapterWeights
from tasks.learning.compression import compress
from tasks.learning.descriptors import Descriptor, fit_descriptor
from tasks.learning.merging import merge
from tasks.likeness import SCORED_ROWS, shift_between
from tasks.policies.merging import Likeness, closest_first, find_excess, mergeable_pairs

WIDTH, RANK, BLOCKS, ROWS = 384, 16, 2, 64


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--budget", type=int, default=32)
    parser.add_argument("--operator", default="cat")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tell(measure(options.adapters, options.budget, options.operator), options.json)


def measure(number: int, budget: int, operator: str) -> dict[str, object]:
    """CPU seconds by part, and in all."""
    generator = torch.Generator().manual_seed(0)
    rows = {f"s-a{n}": torch.randn(BLOCKS, ROWS, WIDTH, generator=generator) + n % 8 for n in range(number)}
    weights = {name: _weights(generator) for name in rows}
    looks = {name: _look(rows[name]) for name in rows}
    known = [Adapter(name, "s", "g", AdapterState.SERVING, (n,), (), (n,)) for n, name in enumerate(rows)]
    depth, spent, merges = dict.fromkeys(rows, 0), {"propose": 0.0, "merge": 0.0, "descriptor": 0.0}, 0
    while find_excess(known, budget):
        began = time.process_time()
        pairs = mergeable_pairs(known, depth)
        if not pairs:
            break
        z = shift_between(
            {a.adapter_id: looks[a.adapter_id] for a in known},
            {a.adapter_id: rows[a.adapter_id][:, :SCORED_ROWS] for a in known},
        )
        a, b = closest_first({(a, b): Likeness((z[a, b], z[b, a]), 0.0) for a, b in pairs})[0]
        merging = time.process_time()
        name = f"s-a{number + merges}"
        weights[name] = merge({"operator": operator, "shares": [0.5, 0.5]}, [weights[a], weights[b]])
        compress(weights[name], "1bit")
        fitting = time.process_time()
        rows[name] = torch.cat([rows[a], rows[b]], 1)
        looks[name] = _look(rows[name])
        spent["propose"] += merging - began
        spent["merge"] += fitting - merging
        spent["descriptor"] += time.process_time() - fitting
        served = tuple(s for each in known if each.adapter_id in (a, b) for s in each.serves)
        depth[name], merges = 1 + max(depth[a], depth[b]), merges + 1
        known = [each for each in known if each.adapter_id not in (a, b)]
        known.append(Adapter(name, "s", "g", AdapterState.SERVING, served, (a, b), served))
    parts = {part: round(seconds, 2) for part, seconds in spent.items()}
    return {
        "adapters": number,
        "serving": len(known),
        "merges": merges,
        "cpu_seconds": round(sum(spent.values()), 2),
        **parts,
    }


def _look(rows_LND: torch.Tensor) -> Descriptor:
    half = rows_LND.shape[1] // 2
    return fit_descriptor(rows_LND[:, :half], rows_LND[:, half:])


def _weights(generator: torch.Generator) -> AdapterWeights:
    sizes = {"down.weight": (RANK, WIDTH), "down.bias": (RANK,), "up.weight": (WIDTH, RANK), "up.bias": (WIDTH,)}
    return {f"blocks.{b}.{n}": torch.randn(s, generator=generator) for b in range(BLOCKS) for n, s in sizes.items()}


if __name__ == "__main__":
    main()
