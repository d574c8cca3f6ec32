"""One process of the orchestration benchmark: learn batches with the learning stubbed, and tell the seconds of each.

What is left is what the pipeline adds around learning: Prefect's flows and tasks, the catalog, S3 and MLflow. Every
tenth batch asks for a new adapter, so that adapters grow with the batches.

Whether a batch costs more in an old stream than in a young one is asked of both in turn: the last batches of a long
stream alternate with those of a second, short one, so that a machine which is busy for a minute is busy for both.
"""

import json
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from infra.orchestration import prepare_prefect, without_heartbeat

ROWS, EXPAND_EVERY = 80, 10
TURNS = 10
"""Batches at the end of either stream that are learned in turn."""


def deliver(inbox: Path, stream: str, batch: int) -> None:
    rows = [{"id": f"{stream}-{batch}-{n}", "text": f"row {n}", "label": str(n % 2)} for n in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), inbox / f"{batch:05d}.parquet")


def stubs(stack: ExitStack) -> None:
    """Everything that touches a tensor answers at once; blobs of the usual names are written all the same."""
    from registry.records import ShiftEvidence  # noqa: PLC0415
    from tasks import adapters, backbones, batches, blobs, decisions, registration, retirement, shift  # noqa: PLC0415
    from tasks.evaluation import Score  # noqa: PLC0415
    from tasks.forms import Form  # noqa: PLC0415

    backbone = SimpleNamespace(digest="stub", num_blocks=12, width=1, modality="text", positions=None)

    def stored(where: str, owner: str, kind: str, _tensors: Any = None) -> Any:
        return blobs.save_bytes(where, owner, kind, f"{owner}/{kind}".encode())

    def fit_shard(stream: Any, shard: Any) -> None:
        for kind in ("statistics", "reference"):
            stored(blobs.prefix(stream.name, shard.group), shard.node, kind)

    def evidence(_stream: Any, shard: Any, adapter: Any, *_: Any) -> Any:
        explained = int(shard.batch_name) % EXPAND_EVERY != 0
        return ShiftEvidence(adapter.adapter_id, 0.5 if explained else 0.001, 0.0, {"9": 0.0})

    def scores(_stream: Any, _model: Any, shards: Any, *_: Any) -> dict[int, Score]:
        return {shard.shard_id: Score(8, 8, 7) for shard in shards}

    def visits(known: Any, _window: Any) -> tuple[Counter[str], Counter[str]]:
        all_of_them = Counter({adapter.adapter_id: 8 for adapter in known})
        return all_of_them, all_of_them

    replaced: dict[Any, dict[str, Any]] = {
        backbones: {"_open": lambda *_: backbone},
        batches: {"encode_missing": lambda *_: 0, "fit_shard": fit_shard},
        shift: {"row_signatures": lambda *_: None, "as_sample": lambda *_: None, "_against": evidence},
        adapters: {
            "train": lambda *_, **__: SimpleNamespace(adapter={}),
            "check_adapter": lambda *_: None,
            "choose_form": lambda *_: Form({}, {}, {"precision": "fp32", "rank": 16}),
            "descriptor_tensors": lambda *_: {},
            "statistics_under": lambda _stream, shards, _weights: {shard.shard_id: {} for shard in shards},
            "load_model": lambda *_: None,
            "score_shards": scores,
        },
        retirement: {"_held_out_visits": visits},
        decisions: {"measure_reuse": lambda *_: (1.0, 1.0)},
        registration: {"load_model": lambda *_: None, "score_shards": scores},
    }
    for module, names in replaced.items():
        for name, stub in names.items():
            stack.enter_context(patch.object(module, name, stub))
    stack.enter_context(patch.object(blobs, "load_tensors", lambda *_: {}))
    stack.enter_context(patch.object(blobs, "store_tensors", stored))


def in_turn(old: int, young: int) -> list[str]:
    """Which stream learns its next batch: the two alternate at the end, for TURNS batches each."""
    if not young:
        return ["old"] * old
    return ["old"] * (old - TURNS) + ["young"] * (young - TURNS) + ["old", "young"] * TURNS


def main(name: str, batches: int, inbox: Path, young: int) -> None:
    from flows.learn import learn  # noqa: PLC0415
    from registry.sections import Consolidation  # noqa: PLC0415
    from registry.stream import Stream  # noqa: PLC0415
    from tasks import opening  # noqa: PLC0415

    kept = Consolidation(max_adapters=None)  # a merge is learning, which is stubbed
    streams, took = {}, {"old": list[tuple[float, float]](), "young": list[tuple[float, float]]()}
    for age in took:
        (inbox / age).mkdir(parents=True, exist_ok=True)
        streams[age] = Stream(
            name=f"{name}-{age}", backbone="stub", source=f"{inbox / age}/*.parquet", consolidation=kept
        )
    opening.open_home()
    with ExitStack() as stack:
        stubs(stack)
        for age in in_turn(batches, young):
            stream, batch = streams[age], len(took[age])
            deliver(inbox / age, stream.name, batch)
            start, cpu = time.perf_counter(), time.process_time()
            learn(stream)
            took[age].append((time.perf_counter() - start, time.process_time() - cpu))
            seconds, of_cpu = took[age][-1]
            print(f"{stream.name} {batch} {seconds:.3f} s, {of_cpu:.3f} s of CPU", file=sys.stderr, flush=True)
    print(json.dumps(took))


if __name__ == "__main__":
    prepare_prefect()
    with without_heartbeat():
        main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
