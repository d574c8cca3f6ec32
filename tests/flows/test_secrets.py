"""A planted secret or subject is found nowhere: no log, repr, parameter, artifact, database, bucket or exception."""

import hashlib
import logging
import traceback
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

from flows import actions
from flows.forget import forget
from flows.learn import learn
from infra import database, seaweed, signing, storage
from infra.disk_sweep import sweep_files
from infra.errors import KeyFileError, UnreachableError
from infra.settings import Settings, settings
from registry import artifacts
from registry.errors import StateError
from registry.records import TicketState
from tasks import tickets
from tasks.tickets import resolve_targets
from tests.flows.conftest import deliver, make_stream

pytestmark = pytest.mark.usefixtures("ready")

SUBJECT, DATABASE_PASSWORD = "planted-subject@example.org", "planted-database-9f31"
CALLER = "planted-caller-e8c1"
SECRETS = {
    "HASH_KEY": "planted-hash-key-51c0",
    "RETIRED_HASH_KEYS": "planted-retired-2b7e",
    "MLFLOW_PASSWORD": "planted-mlflow-77aa",
    "WEBHOOK_SECRET": "planted-webhook-d00d",
}
PRIVATE = {"keys", "s3.json"}
"""What may hold a secret of the home: its keys, and the identities of its S3."""


def found_in_files(home: Path, markers: dict[str, bytes]) -> list[str]:
    """Hits in every file of the home that is not meant to hold secrets: databases, logs, volumes, caches, certificates.

    Searched in a child process: one that reads a database's file beside its own connections loses their locks."""
    names = list(markers)
    return [
        f"{names[hit.marker]} in {hit.path.relative_to(home)}"
        for hit in sweep_files([home], list(markers.values()))
        if PRIVATE.isdisjoint(hit.path.relative_to(home).parts)
    ]


def parameters(*named: str) -> str:
    """Names, parameters and tags of the runs whose names hold one of these."""
    found = []
    with get_client(sync_client=True) as client:
        for part in named:
            wanted = FlowRunFilter(name=FlowRunFilterName(like_=part))
            found += client.read_flow_runs(flow_run_filter=wanted, limit=200)
    return repr([(run.name, run.parameters, run.tags) for run in found])


def found(where: str, content: bytes, markers: dict[str, bytes]) -> list[str]:
    return [f"{name} in {where}" for name, marker in markers.items() if marker in content]


def test_what_was_planted_is_found_nowhere(backbone, tmp_path, inbox, set_variable, caplog):
    for name, value in SECRETS.items():
        set_variable(name, value)
    markers = {name: value.encode() for name, value in SECRETS.items()}
    markers |= {"subject": SUBJECT.encode(), "caller": CALLER.encode()}
    markers["S3 secret"] = seaweed.credentials(settings().home)[1].encode()
    signing.signing_key()
    markers["signing key"] = (settings().home / "keys" / "signing.pem").read_bytes().splitlines()[1]
    caplog.set_level(logging.DEBUG, logger="deciduous")

    stream = make_stream("planted", backbone, inbox)
    source = inbox / "01.jsonl"
    deliver(inbox, "01", ["red", "blue"], rows=60)
    source.write_text(source.read_text().replace("person-3", SUBJECT))
    learn(stream)
    grants = tmp_path / "grants.yaml"
    grants.write_text(f"planted:\n  sha256:{hashlib.sha256(CALLER.encode()).hexdigest()}: [default]\n")
    set_variable("ENTITLEMENTS", grants)
    actions.predict_file(stream.name, str(source), [], CALLER, str(tmp_path / "answers.parquet"))
    actions.predict_source(stream.name, str(source), [], CALLER, str(tmp_path / "told"))
    with pytest.raises(StateError, match="holds none"):
        actions.predict_file(stream.name, str(source), [], f"{CALLER}-mistyped", None)
    ticket = tickets.open_ticket(stream.name, resolve_targets(stream.name, [SUBJECT], []), "test")
    assert ticket.records == 6
    assert forget(ticket.ticket_id).state == TicketState.COMPLETE

    said_by_steps = [record for record in caplog.records if hasattr(record, "deciduous_said")]
    assert {getattr(record, "stream", "planted") for record in said_by_steps} == {"planted"}
    assert any(getattr(record, "batch", None) for record in said_by_steps), "lines of a batch name it"
    assert all(hasattr(record, "flow_run_id") for record in said_by_steps if record.name == "prefect.flow_runs")

    told = parameters(stream.name, ticket.ticket_id)
    assert "'caller': '*****" in told, "the runs that the caller asked for are seen"
    assert all(each in told for each in (stream.source, f"forget-{ticket.ticket_id}", str(source))), "runs are seen"
    hits = found("log", caplog.text.encode(), markers) + found("parameters", told.encode(), markers)
    hits += found("answers", (tmp_path / "answers.parquet").read_bytes(), markers)
    hits += found("settings", repr(settings()).encode() + str(settings().model_dump()).encode(), markers)
    hits += found_in_files(settings().home, markers)
    for bucket in storage.buckets():
        hits += [str(hit) for hit in artifacts.sweep_bytes(storage.s3(), bucket, list(markers.values()))]
    assert hits == []
    assert found_in_files(inbox, markers) == ["subject in 01.jsonl"], "the search sees what is there"


def said(error: BaseException) -> str:
    return repr(error) + "".join(traceback.format_exception(error))


def test_errors_name_addresses_without_their_passwords(set_variable, tmp_path):
    set_variable("DATABASE_URL", f"postgresql+psycopg://ann:{DATABASE_PASSWORD}@127.0.0.1:9/catalog")
    with pytest.raises(UnreachableError) as caught, database.transaction() as session:
        session.connection()
    assert "ann:***@127.0.0.1:9" in str(caught.value)
    assert DATABASE_PASSWORD not in said(caught.value)
    set_variable("S3_ENDPOINT", "http://127.0.0.1:9")
    set_variable("S3_ACCESS_KEY", "planted-access")
    set_variable("S3_SECRET_KEY", "planted-s3-4f4f")
    with pytest.raises(UnreachableError) as caught:
        storage.ensure_buckets()
    assert "planted-s3-4f4f" not in said(caught.value)
    short = "planted" + "-9"  # a traceback repeats the line that called
    with pytest.raises(ValueError, match="hash_key") as invalid:
        Settings(hash_key=short)
    assert short not in said(invalid.value)
    broken = tmp_path / "signing.pem"
    broken.write_text("-----BEGIN PRIVATE KEY-----\nplanted-key-body\n-----END PRIVATE KEY-----\n")
    set_variable("SIGNING_KEY", broken)
    with pytest.raises(KeyFileError) as unreadable:
        signing.signing_key()
    assert "planted-key-body" not in said(unreadable.value)


def test_a_repr_of_the_settings_shows_no_secret(set_variable):
    for name, value in {**SECRETS, "S3_ACCESS_KEY": "ann", "S3_SECRET_KEY": "planted-s3-4f4f"}.items():
        set_variable(name, value)
    set_variable("DATABASE_URL", f"postgresql+psycopg://ann:{DATABASE_PASSWORD}@127.0.0.1:9/catalog")
    set_variable("MLFLOW_DATABASE_URL", f"postgresql+psycopg://ann:{DATABASE_PASSWORD}@127.0.0.1:9/mlflow")
    assert "planted" not in repr(settings()) + str(settings())
