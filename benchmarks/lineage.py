"""How large the lineage of many records is, and how fast a closure: `python -m benchmarks.lineage --records N`.

Fills the catalog's own tables with synthetic records (50 a subject), shards and adapters merged under the default
policy, then times the calls that a ticket makes. SQLite in a temporary file, or the PostgreSQL database given.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sqlalchemy import Engine, event, insert, text
from sqlalchemy.orm import Session

from benchmarks.running import tell
from infra import database
from registry import lineage
from registry.records import EdgeKind
from registry.stream import Stream
from registry.tables import AdapterRow, Base, BatchRow, EdgeRow, ShardRow, StreamRow
from tasks.policies.merging import MAX_COHORT, MAX_DEPTH

RECORDS_A_SUBJECT, SHARDS_A_SUBJECT = 50, 5
TICKETS, BATCH = 200, 1_000
CHUNK = 500_000
SCHEMA = "lineage_benchmark"
STREAM = "synthetic"


def measure(records: int, url: str | None, shards_a_subject: int = SHARDS_A_SUBJECT) -> dict[str, Any]:
    """Fill, time, tidy up; times in milliseconds, sizes in bytes of table and indexes after a bulk load."""
    rng = np.random.default_rng(0)
    subjects = _keys(rng, max(1, records // RECORDS_A_SUBJECT))
    with _opened(url) as engine:
        shards = max(10, min(10_000, records // 200))
        with Session(engine) as session, session.begin():
            edges = _add_structure(session, rng, shards)
        size = _add_records(engine, rng, records, subjects, shards, shards_a_subject)
        single = [_time_closure(engine, [subject]) for subject in rng.choice(subjects, TICKETS).tolist()]
        batch = _time_closure(engine, rng.choice(subjects, min(BATCH, len(subjects)), replace=False).tolist())
        name = engine.dialect.name
    times, reached, cpu = ([each[n] for each in single] for n in (0, 1, 2))
    return {
        "records": records,
        "bytes_per_record": round(size / records, 1),
        "closure_p50_ms": round(float(np.percentile(times, 50)), 1),
        "closure_p99_ms": round(float(np.percentile(times, 99)), 1),
        "batch_1000_ms": round(batch[0], 1),
        "closure_cpu_p50_ms": round(float(np.percentile(cpu, 50)), 1),
        "closure_cpu_p99_ms": round(float(np.percentile(cpu, 99)), 1),
        "batch_1000_cpu_ms": round(batch[2], 1),
        "database": name,
        "shards": shards,
        "shards_a_subject": shards_a_subject,
        "edges": edges,
        "closure_p50": int(np.percentile(reached, 50)),
        "closure_p99": int(np.percentile(reached, 99)),
        "batch_1000_closure": batch[1],
    }


def _keys(rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Distinct 63-bit keys in ascending order, as keyed hashes would be."""
    keys = np.unique(rng.integers(0, 2**63 - 1, count + count // 1000 + 10))
    return np.sort(rng.permutation(keys)[:count])


def _add_structure(session: Session, rng: np.random.Generator, shards: int) -> int:
    """One adapter a shard and two merges a shard, within cohorts; the edges are those that `put_adapter` writes."""
    config = Stream(name=STREAM, backbone="none", source="none").model_dump(mode="json")
    session.add(StreamRow(name=STREAM, config=config, recipe_digest=""))
    session.flush()
    batch = {"batch_id": "b", "stream": STREAM, "name": "b", "ordinal": 0, "uri": "", "state": "done", "rows": 0}
    session.execute(insert(BatchRow), [{**batch, "quarantined": 0, "suppressed": 0, "epoch": 0}])
    counts = {"batch_id": "b", "group": "default", "rows": 1, "held_out": 0, "labelled": 1}
    session.execute(insert(ShardRow), [{"shard_id": n, **counts} for n in range(shards)])
    adapters: list[tuple[list[int], list[int]]] = [([n], []) for n in range(shards)]
    for first in range(0, shards, MAX_COHORT):
        cohort = range(first, min(first + MAX_COHORT, shards))
        generations = [list(cohort)]
        for _ in range(MAX_DEPTH):
            generations.append([_merge(rng, adapters, generations) for _ in cohort])
    blank = {"stream": STREAM, "group": "default", "state": "serving", "recipe": {}, "reason": ""}
    session.execute(insert(AdapterRow), [{"adapter_id": f"{STREAM}-a{n}", **blank} for n in range(len(adapters))])
    edges = [edge for n, (own, parents) in enumerate(adapters) for edge in _edges(n, own, parents)]
    session.execute(insert(EdgeRow), edges)
    return len(edges)


def _merge(rng: np.random.Generator, adapters: list[tuple[list[int], list[int]]], generations: list[list[int]]) -> int:
    """A pair, as consolidation proposes: one adapter of the newest generation, one of any."""
    parents = [int(rng.choice(generations[-1])), int(rng.choice([n for each in generations for n in each]))]
    own = sorted({shard for parent in parents for shard in adapters[parent][0]})
    adapters.append((own, sorted(set(parents))))
    return len(adapters) - 1


def _edges(number: int, own: Sequence[int], parents: Sequence[int]) -> Iterator[dict[str, Any]]:
    child = f"adapter:{STREAM}-a{number}"
    for n, shard in enumerate(own):
        for kind in (EdgeKind.TRAINED_ON, EdgeKind.SERVES):
            yield {"child": child, "parent": f"shard:{shard}", "kind": kind.value, "ordinal": n}
    for n, parent in enumerate(parents):
        merged = EdgeKind.MERGED_FROM.value
        yield {"child": child, "parent": f"adapter:{STREAM}-a{parent}", "kind": merged, "ordinal": n}


def _add_records(
    engine: Engine, rng: np.random.Generator, records: int, subjects: Any, shards: int, shards_a_subject: int
) -> int:
    """Load in key order, the layout that a compacted catalog has; returns the bytes of the table and its indexes."""
    keys = _keys(rng, records)
    owners = rng.permutation(np.arange(records) % len(subjects))
    homes = rng.integers(0, shards, len(subjects))
    of_shard = (homes[owners] + rng.integers(0, shards_a_subject, records)) % shards
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        before = _size(engine)
        connection.execute(text("drop index ix_record_subject_id"))
    numbers = np.arange(1, len(subjects) + 1)
    for start in range(0, len(subjects), CHUNK):
        _load(engine, "subject", [column[start : start + CHUNK].tolist() for column in (numbers, subjects)])
    columns = (keys, numbers[owners], of_shard)
    for start in range(0, records, CHUNK):
        _load(engine, "record", [column[start : start + CHUNK].tolist() for column in columns])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("create index ix_record_subject_id on record (subject_id)"))
        connection.execute(text("analyze"))
    return _size(engine) - before


def _load(engine: Engine, table: str, columns: list[list[int]]) -> None:
    """The drivers' own bulk paths: the ORM would take an hour for 1e8 rows."""
    raw = engine.raw_connection()
    try:
        cursor: Any = raw.cursor()
        if engine.dialect.name == "sqlite":
            cursor.execute("begin")
            places = ", ".join("?" * len(columns))
            cursor.executemany(f"insert into {table} values ({places})", zip(*columns, strict=True))
        else:
            with cursor.copy(f"copy {table} from stdin") as copy:
                for row in zip(*columns, strict=True):
                    copy.write_row(row)
        raw.commit()
    finally:
        raw.close()


def _size(engine: Engine) -> int:
    sqlite = "select page_count * page_size from pragma_page_count(), pragma_page_size()"
    server = "select pg_total_relation_size('record') + pg_total_relation_size('subject')"
    query = sqlite if engine.dialect.name == "sqlite" else server
    with engine.connect() as connection:
        return int(connection.execute(text(query)).scalar_one())


def _time_closure(engine: Engine, subjects: list[int]) -> tuple[float, int, float]:
    """(milliseconds, adapters reached, milliseconds of this process's CPU) of what a ticket asks: its subjects' records
    by shard, then the closure. Where the CPU figure is much the smaller, the machine was busy or the disk slow."""
    start, cpu = time.perf_counter(), time.process_time()
    with Session(engine) as session, session.begin():
        found = lineage.records_of_subjects(session, subjects)
        reached = lineage.closure(session, found)
    return 1000 * (time.perf_counter() - start), len(reached), 1000 * (time.process_time() - cpu)


@contextmanager
def _opened(url: str | None) -> Iterator[Engine]:
    """A database with empty tables: a temporary file, or a schema of this benchmark's own, gone afterwards."""
    with TemporaryDirectory() as scratch:
        engine = database.open_engine(url or f"sqlite:///{Path(scratch) / 'lineage.db'}")
        own_schema = engine.dialect.name != "sqlite"
        if own_schema:
            event.listen(engine, "connect", _use_schema)
            with engine.begin() as connection:
                connection.execute(text(f"drop schema if exists {SCHEMA} cascade"))
                connection.execute(text(f"create schema {SCHEMA}"))
        try:
            Base.metadata.create_all(engine)
            yield engine
        finally:
            if own_schema:
                with engine.begin() as connection:
                    connection.execute(text(f"drop schema {SCHEMA} cascade"))
            engine.dispose()


def _use_schema(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"set search_path to {SCHEMA}")
    connection.commit()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--database", help="URL of a PostgreSQL database; default a temporary SQLite file")
    parser.add_argument("--shards-a-subject", type=int, default=SHARDS_A_SUBJECT)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    tell(measure(options.records, options.database, options.shards_a_subject), options.json)


if __name__ == "__main__":
    main()
