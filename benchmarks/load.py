"""Whether a catalog stays interactive as it fills: `python -m benchmarks.load --json`.

Fills one by the registry's own functions (batches with their records, adapters with their blobs, decisions, versions
with their row of the accuracy matrix, aliases), with few batches and adapters, with ten times the batches, and with ten
times the adapters as well, and asks what people and runs ask. SQLite in a temporary home, or DECIDUOUS_DATABASE_URL of
an empty PostgreSQL database. Milliseconds; growth is the ratio of medians, for ten times the rows.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from infra import database
from infra.settings import settings
from registry import adapters, catalog, contents, decision_log, ownership, totals, versions
from registry.records import (
    Adapter,
    AdapterState,
    Batch,
    BatchState,
    Decision,
    DecisionKind,
    Delivery,
    ModelVersion,
    Shard,
    StoredObject,
    VersionState,
)
from registry.sections import Columns
from registry.stream import Stream
from registry.tables import now
from registry.versions import CHAMPION
from tasks import queries
from tasks.forgetting import make_plan
from tasks.identity import catalog_key

STREAM = "load"
SERVING = 50
"""Adapters that serve, whatever the catalog holds: a stream keeps to its budget, the others were merged or retired."""
RECORDS_A_SUBJECT = 50


def measure(sizes: Sequence[tuple[int, int]], records: int, asked: int) -> dict[str, Any]:
    """For each (batches, adapters) the times of every question; then how the medians grew. `records` are the largest
    catalog's."""
    a_batch = records // max(batches for batches, _ in sizes)
    found = [_measure_one(batches, born, a_batch, asked) for batches, born in sizes]
    medians = [{name: each["p50"] for name, each in one["questions"].items()} for one in found]
    growth = {
        f"{sizes[n]} to {sizes[n + 1]}": {
            name: round(medians[n + 1][name] / medians[n][name], 2) for name in medians[n]
        }
        for n in range(len(sizes) - 1)
    }
    return {"database": database.engine().dialect.name, "sizes": found, "growth": growth}


def _measure_one(batches: int, born: int, records: int, asked: int) -> dict[str, Any]:
    with TemporaryDirectory() as scratch:
        os.environ["DECIDUOUS_HOME"] = scratch
        settings.cache_clear()
        database.migrate()
        start = time.perf_counter()
        fill(batches, born, records)
        filled = time.perf_counter() - start
        questions = {name: _times(ask, asked) for name, ask in questions_of(batches, born).items()}
        database.engine().dispose()
    return {
        "batches": batches,
        "adapters": born,
        "records": batches * records,
        "filled_seconds": round(filled, 1),
        "questions": questions,
    }


def fill(batches: int, born: int, records: int) -> None:
    """A stream's history, a transaction a batch."""
    stream = Stream(name=STREAM, backbone="none", source="s3://inbox/load/*.parquet", columns=Columns())
    with database.transaction() as session:
        catalog.save_stream(session, stream, "digest")
    rng = np.random.default_rng(0)
    subjects = max(1, batches * records // RECORDS_A_SUBJECT)
    shard_ids: list[int] = []
    for number in range(batches):
        owners = rng.integers(0, subjects, records).tolist()
        with database.transaction() as session:
            batch = _add_batch(session, number, owners)
            shard_ids += [shard.shard_id for shard in batch.shards]
            count = born * (number + 1) // batches - born * number // batches
            for _ in range(count):
                _add_adapter(session, shard_ids, born)
            _add_version(session, batch)


def _add_batch(session: Session, number: int, owners: Sequence[int]) -> Batch:
    rows = len(owners)
    shard = Shard(-1, "", "", "default", rows, rows // 8, rows)
    batch = Batch(
        _name("batch", number), STREAM, f"{number:05}", -1, f"s3://inbox/load/{number:05}.parquet", BatchState.READ,
        rows, 0, 0, 0, (shard,),
    )  # fmt: skip
    digest = sha256(batch.batch_id.encode()).hexdigest()
    batch = catalog.add_batch(session, batch, Delivery(batch.uri, digest, 1, f"{batch.uri}#{digest}"), {})
    (shard,) = batch.shards
    named = [(_key("record", number * rows + n), _key("subject", owner)) for n, owner in enumerate(owners)]
    contents.add_records(
        session, [{"key": key, "subject": subject, "shard_id": shard.shard_id} for key, subject in named]
    )
    decision = Decision(DecisionKind.EXPAND, None, "for this benchmark", 0.001)
    numbers = {"p_value": 0.001, "z_scores": {}, "alternatives": {}, "evidence": []}
    decision_log.add_decision(session, batch, shard, decision, numbers)
    ownership.put_objects(session, [_stored(shard.node, kind) for kind in ("rows", "statistics", "reference")])
    catalog.set_batch_state(session, batch.batch_id, BatchState.DONE)
    return batch


def _add_adapter(session: Session, shard_ids: Sequence[int], born: int) -> None:
    adapter_id = adapters.new_adapter_id(session, STREAM)
    number = int(adapter_id.rsplit("-a", 1)[-1])
    shard_id = shard_ids[-1]
    state = AdapterState.SERVING if number > born - SERVING else AdapterState.RETIRED
    serves = (shard_id, *shard_ids[-2:-1])
    adapter = Adapter(adapter_id, STREAM, "default", state, (shard_id,), (), serves, {"kind": "trained"}, 0.9, "why")
    adapters.put_adapter(session, adapter)
    kinds = ("weights", "descriptor", *(f"statistics:{shard}" for shard in serves))
    ownership.put_objects(session, [_stored(adapter.node, kind) for kind in kinds])


def _add_version(session: Session, batch: Batch) -> None:
    number = batch.ordinal + 1
    version = ModelVersion(STREAM, number, _name("run", number), "key", 0, VersionState.READY, 0.9, "why")
    versions.add_version(session, version, _name("manifest", number), batch.node)
    cells = [(_name("batch", n), 0.9, 0.8, 10) for n in range(batch.ordinal + 1)]
    versions.add_accuracies(session, STREAM, number, cells)
    versions.add_alias_event(session, STREAM, CHAMPION, number, "load", "for this benchmark")


def questions_of(batches: int, born: int) -> dict[str, Callable[[], object]]:
    """What people ask by `status`, `ls`, `describe` and `erase --dry-run`, what monitoring asks, and a run."""
    last = _name("batch", batches - 1)
    return {
        "status": lambda: queries.status(STREAM),
        **{f"ls {kind}": _listing(kind) for kind in ("batches", "versions", "decisions", "adapters", "aliases")},
        "describe version": lambda: queries.describe(f"{STREAM}/{batches}"),
        "describe batch": lambda: queries.describe(last),
        "describe adapter": lambda: queries.describe(f"{STREAM}-a{born}"),
        "closure and plan of a subject": _plans(batches),
        "totals for monitoring": _totals,
        "a tick of learn that finds nothing": _tick,
        "what a manifest is made of": _manifest,
        "what a merge starts from": _merge,
    }


def _listing(kind: str) -> Callable[[], object]:
    return lambda: queries.listing(kind, STREAM)


def _plans(batches: int) -> Callable[[], object]:
    """Another subject each time."""
    drawn = iter(np.random.default_rng(1).permutation(batches).tolist() * 100)

    def ask() -> object:
        targets = [("subject", _hash("subject", next(drawn)))]
        return make_plan(STREAM, targets)

    return ask


def _totals() -> object:
    with database.transaction() as session:
        every = [totals.batches, totals.rows, totals.decisions, totals.tickets, totals.ticket_seconds]
        return [ask(session) for ask in every], totals.overdue(session, now()), totals.champion_since(session)


def _tick() -> object:
    with database.transaction() as session:
        catalog.renew_epochs(session, STREAM)
        return catalog.known_tags(session, STREAM), catalog.batches(session, STREAM, BatchState.READ)


def _manifest() -> object:
    with database.transaction() as session:
        shards = contents.done_shards(session, STREAM)
        serving = adapters.adapters(session, STREAM, [AdapterState.SERVING])
        nodes = [shard.node for shard in shards] + [adapter.node for adapter in serving]
        return ownership.objects_of(session, nodes)


def _merge() -> object:
    in_use = (AdapterState.SERVING, AdapterState.CANDIDATE)
    with database.transaction() as session:
        return adapters.adapters(session, STREAM, in_use), decision_log.decisions(session, STREAM)


def _times(ask: Callable[[], object], asked: int) -> dict[str, float]:
    ask()
    times = []
    for _ in range(asked):
        start = time.perf_counter()
        ask()
        times.append(1000 * (time.perf_counter() - start))
    return {name: round(float(np.percentile(times, share)), 2) for name, share in (("p50", 50), ("p99", 99))}


def _name(kind: str, number: int) -> str:
    return _hash(kind, number)[:12]


def _key(kind: str, number: int) -> int:
    return catalog_key(_hash(kind, number))


def _hash(kind: str, number: int) -> str:
    return sha256(f"{kind} {number}".encode()).hexdigest()


def _stored(owner: str, kind: str) -> StoredObject:
    digest = sha256(f"{owner} {kind}".encode()).hexdigest()
    return StoredObject(f"streams/{STREAM}/groups/default/{digest}", digest, 1000, kind, owner)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs=2, default=(100, 1_000))
    parser.add_argument("--adapters", type=int, nargs=2, default=(1_000, 10_000))
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--asked", type=int, default=30, help="how often each question is asked")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    (few, many), (small, large) = options.batches, options.adapters
    figures = measure([(few, small), (many, small), (many, large)], options.records, options.asked)
    print(json.dumps(figures) if options.json else _table(figures))


def _table(figures: dict[str, Any]) -> str:
    names = list(figures["sizes"][0]["questions"])
    head = " | ".join(f"{one['batches']} batches, {one['adapters']} adapters" for one in figures["sizes"])
    lines = [f"| p50 / p99 ms ({figures['database']}) | {head} | batches x 10 | adapters x 10 |"]
    for name in names:
        times = " | ".join("{p50} / {p99}".format(**one["questions"][name]) for one in figures["sizes"])
        grown = " | ".join(str(each[name]) for each in figures["growth"].values())
        lines.append(f"| {name} | {times} | {grown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
