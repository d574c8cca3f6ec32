"""What is killed: each scenario prepares a home, does its work with the flows that users run, and shows what is left.

Everything here runs in processes that tests/faults/crashing.py forks.
"""

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlflow
import pytest
from sqlalchemy.orm import Session

from infra import database, signing, storage, tracking
from infra.settings import settings
from registry import (
    adapters,
    aliases,
    artifacts,
    catalog,
    contents,
    decision_log,
    models,
    ownership,
    suppression,
    ticket_log,
    tickets,
    versions,
)
from registry.errors import StateError
from registry.records import AdapterState, VersionState
from registry.sections import Columns, Consolidation, ShiftOptions
from registry.stream import Stream
from registry.tables import VersionRow
from registry.versions import CHALLENGER, CHAMPION, PREVIOUS
from tasks import blobs
from tasks import tickets as opening
from tasks.certificates import verify
from tasks.garbage import clean_up
from tasks.manifests import load_manifest
from tasks.opening import open_home
from tasks.serving import Answerer
from tests.flows.adversary import put_in_inbox, serve_all
from tests.flows.conftest import deliver, make_stream

NAME = "crash"
FIRST = {"01": {"one": ["red", "blue"]}, "02": {"one": ["green", "gold"]}}
THIRD = {"03": {"one": ["pink", "grey"], "two": ["red", "blue"]}}
SURE = ShiftOptions(alpha=0.003, permutations=399, min_rows=20, new_classes="expand")


def stream_of(backbone: str, folder: Path, **changes: Any) -> Stream:
    columns = Columns(id="key", subject="who", group="team", input="words", label="topic")
    source = f"s3://{settings().inbox_bucket}/{NAME}/*.parquet"
    return make_stream(NAME, Path(backbone), folder, source=source, columns=columns, shift=SURE, **changes)


def put_batches(folder: Path, batches: dict[str, dict[str, list[str]]]) -> None:
    """48 rows for each group of each batch; every one of 12 subjects is in all of them."""
    for name, groups in batches.items():
        rows = []
        for group, topics in groups.items():
            made = deliver(folder, f"{name}-{group}", topics, rows=48)
            rows += [{**row, "who": f"person-{n % 12}", "team": group} for n, row in enumerate(made)]
        put_in_inbox(NAME, name, rows)


def prepare_learning(backbone: str, folder: Path) -> None:
    from flows.learn import learn  # noqa: PLC0415

    open_home()
    put_batches(folder, FIRST)
    learn(stream_of(backbone, folder))


def prepare_a_batch(backbone: str, folder: Path) -> None:
    """Two adapters serve; a batch waits whose first group is new, and whose second one looks like the first batch."""
    prepare_learning(backbone, folder)
    put_batches(folder, THIRD)


def prepare_two(backbone: str, folder: Path) -> None:
    prepare_learning(backbone, folder)
    serve_all(stream_of(backbone, folder))


def prepare_ticket(backbone: str, folder: Path) -> None:
    """A merge of both adapters serves, and a ticket took effect."""
    prepare_two(backbone, folder)
    do_consolidate(backbone, folder)
    signing.signing_key()  # drawn on first use
    open_ticket(backbone, folder)


def open_ticket(backbone: str, folder: Path) -> None:
    stream = stream_of(backbone, folder)
    opening.open_ticket(NAME, opening.resolve_targets(stream.name, ["person-3"], []), "test")


def do_learn(backbone: str, folder: Path) -> None:
    from flows.learn import learn  # noqa: PLC0415

    open_home()
    learn(stream_of(backbone, folder))


def do_consolidate(backbone: str, folder: Path) -> None:
    from flows.consolidate import consolidate  # noqa: PLC0415

    open_home()
    consolidate(stream_of(backbone, folder), (f"{NAME}-a1", f"{NAME}-a2"))


def consolidate_again(backbone: str, folder: Path) -> None:
    """As `do_consolidate`; where the killed process had finished, the error says so."""
    with database.transaction() as session:
        states = {each.state for each in adapters.get_adapters(session, [f"{NAME}-a1", f"{NAME}-a2"])}
        done = states == {AdapterState.RETIRED} and versions.alias_of(session, NAME, CHAMPION) == 3
    refused = pytest.raises(StateError, match="superseded by") if done else nullcontext()
    with refused:
        do_consolidate(backbone, folder)


def do_budget(backbone: str, folder: Path) -> None:
    """The next learn finds more adapters than the budget allows."""
    from flows.consolidate import consolidate  # noqa: PLC0415

    open_home()
    consolidate(stream_of(backbone, folder, consolidation=Consolidation(max_adapters=1)))


def do_forget(_backbone: str, _folder: Path) -> None:
    from flows.forget import forget  # noqa: PLC0415

    open_home()
    with database.transaction() as session:
        (ticket,) = tickets.tickets(session, NAME)
    forget(ticket.ticket_id)


@dataclass(frozen=True)
class Scenario:
    prepare: Callable[[str, Path], None]
    work: Callable[[str, Path], None]
    again: Callable[[str, Path], None]


SCENARIOS = {
    "learn": Scenario(prepare_a_batch, do_learn, do_learn),
    "merge": Scenario(prepare_two, do_consolidate, consolidate_again),
    "consolidate": Scenario(prepare_two, do_budget, do_budget),
    "forget": Scenario(prepare_ticket, do_forget, do_forget),
}


def served(known: frozenset[int]) -> tuple[int | None, int | None]:
    """The champions of the catalog and of MLflow; each answers, and neither was half made."""
    with database.transaction() as session:
        champion = versions.alias_of(session, NAME, CHAMPION)
        if champion is not None:
            assert versions.get_version(session, NAME, champion).state == VersionState.READY
    theirs = aliases.find_alias(tracking.prepare_tracking(), NAME, CHAMPION)
    if champion is not None:
        asked = Answerer(load_manifest(NAME, champion)).answer([b"a b c", b"s t u"], ["one", "two"])
        assert len(asked.labels) == 2
    if theirs is not None and theirs not in known:
        mlflow.pyfunc.load_model(f"models:/{NAME}@{CHAMPION}").predict(["a b c"], params={"groups": "one"})
    return champion, theirs


def left_behind() -> dict[str, Any]:
    """Everything that a run leaves once `gc` has run, without moments and without names that are drawn."""
    clean_up(NAME, dry_run=False)
    with database.transaction() as session:
        rows = session.query(VersionRow).filter_by(stream=NAME).order_by(VersionRow.version).all()
        # what is clean when a broken-off deletion goes on serves at once: a version that the undisturbed run had not
        extra = {row.run_id for row in rows if row.cause.startswith(versions.STAND_IN)}
        causes = {row.version: row.cause for row in rows if row.run_id not in extra}
        ready = [row.version for row in rows if row.version in causes and row.state == VersionState.READY]
        named = ownership.all_keys(session, blobs.stream_prefix(NAME))
        found = _of_catalog(session, causes)
        alive = [a.adapter_id for a in adapters.adapters(session, NAME) if a.state != AdapterState.ERASED]
    stored = artifacts.list_versions(storage.s3(), settings().artifact_bucket, blobs.stream_prefix(NAME))
    assert {version.key for version in stored} == named, "after gc what is stored is what is named"
    assert len(stored) == len(named), "each blob once"
    found["manifests"] = {causes[number]: load_manifest(NAME, number) for number in ready}
    found |= _of_mlflow(causes, extra)
    found |= {"inbox": _inbox(), "home": _of_home()}
    return json.loads(_neutral(json.dumps(found, sort_keys=True, default=_plain), alive))


def _of_catalog(session: Session, causes: dict[int, str]) -> dict[str, Any]:
    every = adapters.adapters(session, NAME)
    owners = [a.node for a in every] + [shard.node for shard in contents.done_shards(session, NAME)]
    worked = tickets.tickets(session, NAME)
    ticket_log.check(session)
    return {
        "batches": catalog.batches(session, NAME),
        "adapters": [a for a in every if a.state != AdapterState.ERASED],
        "erased": [a.adapter_id for a in every if a.state == AdapterState.ERASED],
        "decisions": [(d.kind, d.adapter_id, d.reason, d.numbers) for d in decision_log.decisions(session, NAME)],
        "versions": [
            (causes[v.version], v.state, v.epoch, v.accuracy, v.reason)
            for v in versions.versions(session, NAME)
            if v.version in causes
        ],
        "aliases": [
            (e.alias, causes[e.version], e.by) for e in versions.alias_history(session, NAME) if e.version in causes
        ],
        "matrix": {cause: versions.accuracies(session, NAME, number) for number, cause in causes.items()},
        "suppressed": suppression.suppressed(session, NAME),
        "deliveries": sorted(catalog.known_tags(session, NAME)),
        "objects": [(o.owner, o.kind, o.sha256) for o in ownership.objects_of(session, owners)],
        "tickets": [(t.state, t.note, t.records) for t in worked],
        "steps": [sorted(row.step for row in tickets.steps_of(session, t.ticket_id)) for t in worked],
        "log": [[e.kind for e in ticket_log.events_of(session, t.ticket_id)] for t in worked],
        "certificates": [_certified() for _ in tickets.certificates(session)],
    }


DROPPED = ("certified_at", "received_at", "due_at", "history", "log_digest", "ticket", "artifacts", "purge", "monitors")


def _certified() -> dict[str, Any]:
    (path,) = (settings().home / "certificates").glob("*.json")
    content = verify(path.read_bytes())
    content["rebuilt"].pop("block_evaluations")  # of the process that finished it
    return {key: value for key, value in content.items() if key not in DROPPED}


def _inbox() -> list[tuple[str, str]]:
    s3, bucket, found = storage.s3(), settings().inbox_bucket, []
    for version in artifacts.list_versions(s3, bucket, NAME):
        data = s3.get_object(Bucket=bucket, Key=version.key, VersionId=version.version_id)["Body"].read()
        found.append((version.key, sha256(data).hexdigest()))
    return sorted(found)


def _of_mlflow(causes: dict[int, str], extra: set[str]) -> dict[str, Any]:
    client = tracking.prepare_tracking()
    aliased = {alias: aliases.find_alias(client, NAME, alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)}
    numbers = [number for number in models.list_versions(client, NAME) if number in causes]
    tags = {causes[n]: sorted(client.get_model_version(NAME, str(n)).tags) for n in numbers}
    runs = [run.info for run in models.all_runs(client, tracking.experiment(client, NAME))]
    listed = artifacts.list_versions(storage.s3(), settings().artifact_bucket, "mlflow/")
    folders = {run.run_id: sum(f"/{run.run_id}/" in f"/{v.key}" for v in listed) for run in runs}
    return {
        "their aliases": {alias: causes.get(number or 0) for alias, number in aliased.items()},
        "their versions": tags,
        "their runs": sorted(run.status for run in runs if run.run_id not in extra),
        "their files": sorted(count for run_id, count in folders.items() if run_id not in extra),
        "their strays": len(listed) - sum(folders.values()),
    }


def _of_home() -> dict[str, int]:
    """Files by folder; caches are made again when they are needed."""
    counts: dict[str, int] = {}
    for path in settings().home.rglob("*"):
        folder = path.relative_to(settings().home).parts[0]
        if path.is_file() and folder in ("escrow", "certificates", "keys"):
            counts[folder] = counts.get(folder, 0) + 1
    return counts


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _neutral(text: str, adapter_ids: list[str]) -> str:
    """Adapters by their order: an id that was drawn and lost is not given again."""
    places = {name: f"{NAME}#{n}" for n, name in enumerate(adapter_ids)}
    return re.sub(rf"{NAME}-a\d+", lambda found: places.get(found[0], "gone"), text)
