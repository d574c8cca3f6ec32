"""What the tests of deletion share: a stream with a merge in our inbox bucket, learned and forgotten by the same steps
as the flows call, without Prefect's bookkeeping, which is not what they test."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from prefect.tasks import Task

from flows import forget as saga
from infra import database, storage, tracking
from infra.settings import settings
from registry import adapters, aliases, tickets, versions
from registry.records import AdapterState, DecisionKind, Ticket, TicketState, VersionState
from registry.versions import CHALLENGER, CHAMPION, PREVIOUS
from tasks import adapters as fitting
from tasks import batches, consolidation, decisions, promotion, registration, retirement, shift
from tasks import tickets as opening
from tasks.alias_moves import serves_clean
from tasks.certificates import verify
from tasks.opening import certificate_path
from tests.flows.conftest import deliver, make_stream

ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
STEPS = [name for name, each in vars(saga).items() if isinstance(each, Task)]


def learned_stream(name: str, backbone, folder, subjects: int = 30, merged: bool = True, **changes):
    """Two batches of 120 rows in the inbox bucket, an adapter for each, both merged; every subject in both batches."""
    stream = make_stream(name, backbone, folder, source=f"s3://{settings().inbox_bucket}/{name}/*.parquet", **changes)
    for batch, topics in (("01", ["red", "blue"]), ("02", ["green", "gold"])):
        rows = deliver(folder, batch, topics, rows=120)
        put_in_inbox(name, batch, [{**row, "who": f"person-{n % subjects}"} for n, row in enumerate(rows)])
    learn(stream)
    if merged:
        merge(stream)
    return stream


def learn(stream) -> None:
    """What `flows.learn` does with every new object."""
    batches.open_stream.fn(stream)
    for uri, tag in batches.discover.fn(stream):
        batch = batches.read_batch.fn(stream, uri, tag)
        if batch is not None:
            learn_batch(stream, batch)


def learn_batch(stream, batch) -> None:
    batches.encode_batch.fn(stream, batch)
    made = [decisions.decide.fn(stream, batch, s, shift.measure_shift.fn(stream, s)) for s in batch.shards]
    for shard, decision in zip(batch.shards, made, strict=True):
        if decision.kind == DecisionKind.EXPAND:
            fitting.train_adapter.fn(stream, shard, decision.adapter_id)
        elif decision.kind == DecisionKind.REFRESH:
            fitting.refresh_adapter.fn(stream, shard, decision.adapter_id)
    made = decisions.with_growth(stream, batch.shards, made)
    for shard, decision in zip(batch.shards, made, strict=True):
        if decision.adapter_id is not None and decision.kind != DecisionKind.HOLD:
            fitting.judge_adapter.fn(stream, shard, decision.adapter_id)
    if all(decision.kind == DecisionKind.HOLD for decision in made):
        batches.hold_batch.fn(stream, batch, made[0].reason)
        return
    version = registration.register_batch.fn(stream, batch, made)
    promotion.promote_version.fn(stream, version)
    batches.finish_batch.fn(stream, batch, made)


def merge(stream, *parents: str) -> str:
    """What `flows.consolidate` does with these adapters, or with all, which serve whether they earned it or not."""
    outcome = consolidation.merge_adapters.fn(stream, parents or tuple(serve_all(stream)))
    assert outcome.accepted, outcome.reason
    with database.transaction() as session:
        adapters.move_adapter(session, outcome.adapter_id, AdapterState.SERVING, "for this test")
    for parent in outcome.parent_ids:
        retirement.retire_adapter.fn(parent, f"superseded by {outcome.adapter_id}")
    version = registration.register_change.fn(stream, f"merge:{outcome.adapter_id}", outcome.reason, outcome.epoch)
    promotion.promote_version.fn(stream, version)
    return outcome.adapter_id


def forget(ticket_id: str) -> Ticket:
    """What `flows.forget` does: its own body, over plain steps."""
    return saga.forget.fn(ticket_id)


def serve_all(stream) -> list[str]:
    with database.transaction() as session:
        born = [a.adapter_id for a in adapters.adapters(session, stream.name)]
        for adapter_id in born:
            adapters.move_adapter(session, adapter_id, AdapterState.SERVING, "for this test")
    return born


def put_in_inbox(stream: str, name: str, rows: list[dict]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    storage.s3().put_object(Bucket=settings().inbox_bucket, Key=f"{stream}/{name}.parquet", Body=sink.getvalue())


def open_ticket(stream, *subjects: str, records=()) -> Ticket:
    return opening.open_ticket(stream.name, opening.resolve_targets(stream.name, subjects, records), "test")


def state_of(ticket_id: str) -> Ticket:
    with database.transaction() as session:
        return tickets.get_ticket(session, ticket_id)


def champion_of(stream) -> int | None:
    with database.transaction() as session:
        return versions.alias_of(session, stream.name, CHAMPION)


def assert_nothing_tainted_serves(stream) -> None:
    """Every alias names the same in the catalog and in MLflow: nothing, or what is ready and no ticket reaches."""
    client = tracking.prepare_tracking()
    with database.transaction() as session:
        named = {alias: versions.alias_of(session, stream.name, alias) for alias in ALIASES}
        ready = {version.version for version in versions.versions(session, stream.name, VersionState.READY)}
    assert {alias: aliases.find_alias(client, stream.name, alias) for alias in ALIASES} == named
    assert set(named.values()) - {None} <= ready
    assert serves_clean(stream), named


def assert_complete(ticket_id: str) -> None:
    closed = state_of(ticket_id)
    assert closed.state == TicketState.COMPLETE, closed.note


def certificate_of(ticket_id: str) -> dict:
    return verify(Path(certificate_path(ticket_id)).read_bytes())


def ready_versions(stream) -> list[int]:
    with database.transaction() as session:
        return [found.version for found in versions.versions(session, stream.name, VersionState.READY)]


def in_the_middle_of(monkeypatch, module, name: str, happens):
    """Let something happen once, right before the call."""
    work, left = getattr(module, name), [happens]

    def interrupted(*args, **kwargs):
        if left:
            left.pop()()
        return work(*args, **kwargs)

    monkeypatch.setattr(module, name, interrupted)


def of_inbox(name: str) -> str:
    return f"s3://{settings().inbox_bucket}/{name}/*.parquet"
