"""Random tickets, each broken off somewhere, leave the bytes of a home that never held the records."""

import json
import random
from pathlib import Path

import pytest

from flows import forget as saga
from flows.consolidate import consolidate
from flows.learn import learn
from infra import database
from registry import adapters, contents, decision_log, ownership, tickets, versions
from registry.records import AdapterState, TicketState, VersionState
from registry.sections import AdapterOptions, Consolidation, Gates, ShiftOptions
from registry.versions import CHAMPION
from tasks import tickets as opening
from tasks.certificates import digest, verify
from tasks.opening import certificate_path, open_home
from tests.flows import adversary
from tests.flows.adversary import STEPS
from tests.flows.conftest import deliver, make_stream

pytestmark = pytest.mark.usefixtures("ready")
BATCHES = {"01": ["red", "blue"], "02": ["green", "gold"], "03": ["red", "blue"]}

# one batch in a hundred without shift expands at the default alpha, and then the homes would differ by decision
SURE = ShiftOptions(alpha=0.003, permutations=399, min_rows=20, new_classes="expand")


class PowerCutError(Exception):
    """Ends a run where it stands, as a killed process would."""


@pytest.fixture
def plain_steps(monkeypatch):
    """The steps without Prefect's bookkeeping, which is not what is tested here; with the pages of its UI."""
    for name in STEPS:
        monkeypatch.setattr(saga, name, getattr(saga, name).fn)


def write_batches(folder: Path, rows: int, subjects: int) -> list[dict]:
    """Three batches (the third looks like the first), every subject in each of them."""
    written = []
    for name, topics in BATCHES.items():
        records = [
            {**row, "who": f"person-{n % subjects}"} for n, row in enumerate(deliver(folder, name, topics, rows))
        ]
        write(folder, name, records)
        written += records
    return written


def write(folder: Path, name: str, records: list[dict]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))


def learn_and_merge(stream) -> None:
    """An adapter for either look, the third batch joined to one of them, and a merge of both."""
    learn(stream)
    with database.transaction() as session:
        born = adapters.adapters(session, stream.name)
        for adapter in born:
            adapters.move_adapter(session, adapter.adapter_id, AdapterState.SERVING, "for this test")
    outcome = consolidate(stream, tuple(adapter.adapter_id for adapter in born))
    assert outcome.accepted, outcome.reason


def artifacts_of(stream) -> dict[str, str]:
    """Digest of every artifact: rows, statistics, references, weights, descriptors, checkpoints."""
    with database.transaction() as session:
        shards = contents.done_shards(session, stream.name)
        names = {shard.node: f"{shard.batch_name}-{shard.group}" for shard in shards}  # a batch has a shard a group
        names |= {a.node: a.adapter_id for a in adapters.adapters(session, stream.name)}
        kinds = {f"statistics:{shard.shard_id}": f"statistics:{names[shard.node]}" for shard in shards}
        found = ownership.objects_of(session, names)
    return {f"{names[o.owner]}/{kinds.get(o.kind, o.kind)}": o.sha256 for o in found}


def decisions_of(stream) -> list[tuple[str, str]]:
    with database.transaction() as session:
        return [(d.kind, d.adapter_id) for d in decision_log.decisions(session, stream.name)]


def open_ticket(stream, row: dict, by_record: bool) -> str:
    named = ([], [row["key"]]) if by_record else ([row["who"]], [])
    return opening.open_ticket(stream.name, opening.resolve_targets(stream.name, *named), "test").ticket_id


def noted_steps(ticket_id: str) -> list[str]:
    with database.transaction() as session:
        return [row.step for row in tickets.steps_of(session, ticket_id)]


def assert_nothing_tainted_serves(stream) -> None:
    with database.transaction() as session:
        champion = versions.alias_of(session, stream.name, CHAMPION)
        assert champion is None or versions.get_version(session, stream.name, champion).state == VersionState.READY


def assert_certified(ticket_id: str, log: list[str]) -> None:
    """Complete, E0, and one more entry in the chain of certificates."""
    certificate = Path(certificate_path(ticket_id)).read_bytes()
    content = verify(certificate)
    assert (content["guarantee"], content["sweep"]["hits"]) == ("E0", 0)
    assert content["sweep"]["markers"] > 0
    assert content["previous_certificate"] == log[-1]
    log.append(digest(certificate))
    with database.transaction() as session:
        assert tickets.get_ticket(session, ticket_id).state == TicketState.COMPLETE
        assert (ticket_id, log[-1]) in tickets.certificates(session)


def last_certificate() -> str:
    with database.transaction() as session:
        return tickets.last_certificate(session)


def break_after(monkeypatch, name: str) -> None:
    work = getattr(saga, name)

    def cut(*args, **kwargs):
        work(*args, **kwargs)
        raise PowerCutError(name)

    monkeypatch.setattr(saga, name, cut)


def break_before_note(monkeypatch, name: str) -> None:
    note = tickets.finish_step

    def cut(session, ticket_id, step, *args):
        if step == name:
            raise PowerCutError(name)
        note(session, ticket_id, step, *args)

    monkeypatch.setattr(tickets, "finish_step", cut)


def assert_as_if_never_there(
    stream, folder: Path, gone: list[dict], set_variable, fresh_home: Path, again=learn_and_merge
) -> None:
    """Learn what is left in a home of its own; its artifacts have the same bytes."""
    here, decided = artifacts_of(stream), decisions_of(stream)
    left = folder / "left"
    left.mkdir()
    keys = {row["key"] for row in gone}
    for name in BATCHES:
        rows = map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
        write(left, name, [row for row in rows if row["key"] not in keys])
    set_variable("HOME", fresh_home)
    open_home()
    elsewhere = stream.model_copy(update={"source": f"{left}/*.jsonl"})
    again(elsewhere)
    assert decisions_of(elsewhere) == decided
    assert artifacts_of(elsewhere) == here
    assert len(here) > 20


@pytest.mark.parametrize(
    "every",
    [
        pytest.param(8, id="some"),
        pytest.param(1, id="all", marks=[pytest.mark.services, pytest.mark.timeout(1800)]),
    ],
)
@pytest.mark.usefixtures("plain_steps")
def test_a_ticket_broken_off_anywhere_ends_as_if_it_had_not_been(
    backbone, inbox, set_variable, tmp_path_factory, monkeypatch, every
):
    set_variable("HASH_KEY", "the same in both homes")
    stream = make_stream(f"broken-off-{every}", backbone, inbox, shift=SURE)
    rows = write_batches(inbox, rows=96, subjects=32)
    learn_and_merge(stream)
    draw, log, gone = random.Random(1), [last_certificate()], []

    def next_ticket() -> str:
        row, by_record = draw.choice([r for r in rows if r not in gone]), draw.random() < 0.3
        gone.extend(r for r in rows if (r["key"] == row["key"] if by_record else r["who"] == row["who"]))
        return open_ticket(stream, row, by_record)

    whole = next_ticket()
    saga.forget(whole)
    assert_certified(whole, log)
    points = [(break_after, name) for name in STEPS] + [(break_before_note, name) for name in noted_steps(whole)]
    assert len(points) >= 15
    for break_, name in points[every - 1 :: every]:
        ticket_id = next_ticket()
        with monkeypatch.context() as patch:
            break_(patch, name)
            with pytest.raises(PowerCutError, match=name):
                saga.forget(ticket_id)
        assert_nothing_tainted_serves(stream)
        assert saga.forget(ticket_id).state == TicketState.COMPLETE, name
        assert_certified(ticket_id, log)
    assert_as_if_never_there(stream, inbox, gone, set_variable, tmp_path_factory.mktemp("fresh-home"))


def learn_and_merge_plainly(stream) -> None:
    """The same without Prefect's bookkeeping."""
    adversary.learn(stream)
    adversary.merge(stream)


@pytest.mark.parametrize(
    ("precision", "operator", "pruned"),
    [
        ("1bit", "svd", "none"),
        pytest.param("1bit", "cat", "none", marks=pytest.mark.services),
        pytest.param("fp32", "svd", "none", marks=pytest.mark.services),
        pytest.param("fp32", "cat", "snip", marks=pytest.mark.services),
        pytest.param("fp32", "ot", "magnitude", marks=pytest.mark.services),
    ],
)
@pytest.mark.usefixtures("plain_steps")
def test_compressed_and_merged_bytes_are_those_of_a_stream_without_the_records(
    backbone, inbox, set_variable, tmp_path_factory, monkeypatch, precision, operator, pruned
):
    monkeypatch.setattr(saga, "report_ticket", lambda *_: None)  # a page of Prefect's UI
    set_variable("HASH_KEY", "the same in both homes")
    gates = Gates(accuracy_drop=0.5, forgetting=0.5, merge_drop=0.5, form_drop=1)
    adapter = AdapterOptions(rank=4, last_layers=2, epochs=2, precision=precision, prune=pruned)
    changes = {"adapter": adapter, "gates": gates, "consolidation": Consolidation(operator=operator)}
    stream = make_stream(f"small-{precision}-{operator}-{pruned}", backbone, inbox, shift=SURE, **changes)
    rows = write_batches(inbox, rows=96, subjects=32)
    learn_and_merge_plainly(stream)
    log, ticket_id = [last_certificate()], open_ticket(stream, rows[0], by_record=False)
    adversary.forget(ticket_id)
    assert_certified(ticket_id, log)
    with database.transaction() as session:
        every = adapters.adapters(session, stream.name)
    assert {a.recipe["form"]["precision"] for a in every} == {precision}
    assert {a.recipe["form"].get("prune", "none") for a in every} == {pruned}
    assert [a.recipe["operator"] for a in every if a.parent_ids] == [operator]
    gone = [row for row in rows if row["who"] == rows[0]["who"]]
    fresh_home = tmp_path_factory.mktemp("fresh-home")
    assert_as_if_never_there(stream, inbox, gone, set_variable, fresh_home, learn_and_merge_plainly)


def learn_and_merge_twice(stream) -> None:
    """An adapter for each of three looks; two are merged, and what came of it with the third."""
    adversary.learn(stream)
    first, second, third = adversary.serve_all(stream)
    adversary.merge(stream, adversary.merge(stream, first, second), third)


@pytest.mark.services
@pytest.mark.usefixtures("plain_steps")
def test_a_merge_of_a_merge_is_replayed_to_the_same_bytes(backbone, inbox, set_variable, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(saga, "report_ticket", lambda *_: None)  # a page of Prefect's UI
    monkeypatch.setitem(BATCHES, "04", ["pink", "grey"])
    set_variable("HASH_KEY", "the same in both homes")
    stream = make_stream("twice", backbone, inbox, shift=SURE)
    rows = write_batches(inbox, rows=96, subjects=32)
    learn_and_merge_twice(stream)
    with database.transaction() as session:
        merged = [a for a in adapters.adapters(session, stream.name) if a.parent_ids]
    assert merged[0].adapter_id in merged[1].parent_ids
    log, ticket_id = [last_certificate()], open_ticket(stream, rows[0], by_record=True)  # in the first batch alone
    adversary.forget(ticket_id)
    assert_certified(ticket_id, log)
    fresh_home = tmp_path_factory.mktemp("fresh-home")
    assert_as_if_never_there(stream, inbox, rows[:1], set_variable, fresh_home, learn_and_merge_twice)


@pytest.mark.services
@pytest.mark.timeout(3000)
@pytest.mark.usefixtures("plain_steps")
def test_a_hundred_random_tickets(backbone, inbox, set_variable, tmp_path_factory):
    set_variable("HASH_KEY", "the same in both homes")
    stream = make_stream("hundred", backbone, inbox, shift=SURE)
    rows = write_batches(inbox, rows=200, subjects=150)
    learn_and_merge(stream)
    draw, log, gone, left = random.Random(2), [last_certificate()], [], 100
    while left:
        opened = []
        for _ in range(min(left, draw.choice([1, 1, 2, 5, 8]))):  # alone, or worked as one batch
            row, by_record = draw.choice([r for r in rows if r not in gone]), draw.random() < 0.3
            gone.extend(r for r in rows if (r["key"] == row["key"] if by_record else r["who"] == row["who"]))
            opened.append(open_ticket(stream, row, by_record))
        left -= len(opened)
        assert saga.forget(draw.choice(opened)).state == TicketState.COMPLETE
        for ticket_id in opened:
            assert_certified(ticket_id, log)
    assert_as_if_never_there(stream, inbox, gone, set_variable, tmp_path_factory.mktemp("fresh-home"))
