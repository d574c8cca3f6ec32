"""Bring a backup back without bringing back what was to be forgotten since: nothing is visible before that is done."""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from infra import database, storage, tracking
from infra.settings import settings
from registry import artifacts, catalog, dump, ownership, tickets, versions
from registry.errors import StateError
from registry.records import VersionState
from tasks import certificate_journal
from tasks.alias_moves import mirror_aliases, withdraw_versions
from tasks.backup import CATALOG, MLFLOW, OBJECTS, Index, read_index, read_lines
from tasks.blobs import stream_prefix
from tasks.closing import enter_certificate
from tasks.exclusion import alone
from tasks.manifests import keys_in, load_json
from tasks.tickets import replay

BY = "deciduous restore"


def restore(folder: Path, replace: bool, dry_run: bool) -> dict[str, Any]:
    """Replace the catalog by a backup's, then bring every ticket that took effect since into force and withdraw the
    versions that it or a missing blob taints: one transaction of the catalog, so that nobody reads a state between.
    MLflow's tables are a transaction of their own, the last thing before the catalog's commits: what fails leaves both
    as they were. They come without aliases: what the catalog lets serve is set at the end.

    Raises StateError when the catalog is not empty and `replace` was not asked for, or the backup is newer than this
    code."""
    index = read_index(folder)
    if not database.is_known(index["revision"]):
        raise StateError(
            f"the backup {folder} is of revision {index['revision']}, newer than this code: update Deciduous, then "
            "restore it"
        )
    renamed = _renamed(folder, index)
    with ExitStack() as held:
        with database.transaction() as session:
            present = catalog.stream_names(session)
        if present and not replace:
            raise StateError(f"the catalog holds {', '.join(present)}; --replace puts the backup in its place")
        for stream in present:
            held.enter_context(alone(stream, wait_seconds=0))
        hidden = _hidden(folder, renamed)
        if not dry_run:
            _bring_back(hidden)
        with database.replacing(dry_run) as connection:
            database.bring(connection, index["revision"])
            rows = dump.load_rows(connection, read_lines(folder, CATALOG))
            database.bring(connection, "head")
            report = _make_safe(connection, {key for _, key, _ in hidden})
            if not dry_run:
                _restore_mlflow(folder, renamed)
        if not dry_run:
            for stream in report["streams"]:
                mirror_aliases(stream)
    return {"made_at": index["made_at"], "rows": rows, "objects_brought_back": len(hidden), **report}


def _make_safe(connection: Connection, hidden: Set[str]) -> dict[str, Any]:
    """Replay suppressions and withdraw what must not serve, in the transaction of the restored tables. `hidden` are
    keys that come back; in a dry run they are not there yet."""
    with Session(connection) as session:
        streams = catalog.stream_names(session)
        replayed = [ticket_id for stream in streams for ticket_id in replay(session, stream, BY)]
        certificates = _enter_certificates(session, streams)
        incomplete = {stream: _withdraw_incomplete(session, stream, hidden) for stream in streams}
        rewritten = {stream: _rewritten_since(session, stream, hidden) for stream in streams}
        champions = {stream: versions.alias_of(session, stream, versions.CHAMPION) for stream in streams}
        session.commit()  # of the session alone: the caller's transaction goes on
    return {
        "streams": streams,
        "tickets_replayed": replayed,
        "certificates_entered_again": certificates,
        "versions_withdrawn_for_missing_blobs": {stream: found for stream, found in incomplete.items() if found},
        "batches_rewritten_since": {stream: found for stream, found in rewritten.items() if found},
        "champions": champions,
    }


def _enter_certificates(session: Session, streams: Sequence[str]) -> list[str]:
    """Go on with the chain up to the newest certificate that was issued since: the next one follows that, and no two
    follow the same. Returns their tickets."""
    noted = [each for stream in streams for each in certificate_journal.noted(stream)]
    following = {content["previous_certificate"]: (stored, content["ticket"]) for stored, content in noted}
    entered, head = [], tickets.last_certificate(session)
    while head in following:
        stored, ticket_id = following.pop(head)
        enter_certificate(session, ticket_id, stored, head)
        entered.append(ticket_id)
        head = stored.sha256
    return entered


def _withdraw_incomplete(session: Session, stream: str, hidden: Set[str]) -> list[int]:
    """Take versions out of service that name a blob which is gone: a ticket purged it since."""
    current = _keys(settings().artifact_bucket, stream_prefix(stream))
    here = current | hidden
    incomplete = []
    for version in versions.versions(session, stream, VersionState.READY):
        if version.manifest_key in here - current:
            continue  # a dry run cannot read it before it is back
        digest = versions.manifest_digest(session, stream, version.version)
        if version.manifest_key not in here or not keys_in(load_json(version.manifest_key, digest)) <= here:
            incomplete.append(version.version)
    withdraw_versions(session, stream, incomplete, "the backup names blobs that were purged since")
    return incomplete


def _rewritten_since(session: Session, stream: str, hidden: Set[str]) -> list[str]:
    """Batches whose rows, or whose list of refused ones, a ticket rewrote: this catalog names those from before, which
    are gone."""
    here = _keys(settings().artifact_bucket, stream_prefix(stream)) | hidden
    every = catalog.batches(session, stream)
    batch_of = {node: batch.name for batch in every for node in (batch.node, *(shard.node for shard in batch.shards))}
    stored = ownership.objects_of(session, batch_of)
    lost = {each.owner for each in stored if each.kind in ("rows", "quarantine") and each.key not in here}
    return sorted({batch_of[owner] for owner in lost})


def _renamed(folder: Path, index: Index) -> dict[str, str]:
    """Today's name of each bucket of the backup: a home that moves to a server may find the old name taken there.

    Raises StateError where the catalog names deliveries by an inbox of another name."""
    renamed = dict(zip(index["buckets"], storage.buckets(), strict=True))
    inbox = index["buckets"][1]
    if renamed[inbox] != inbox and any(f"s3://{inbox}/" in line for line in read_lines(folder, CATALOG)):
        raise StateError(
            f"the catalog of the backup names deliveries in s3://{inbox}/, the inbox here is {renamed[inbox]}; "
            f"set DECIDUOUS_INBOX_BUCKET={inbox}"
        )
    return renamed


def _restore_mlflow(folder: Path, renamed: Mapping[str, str]) -> None:
    tracking.prepare_tracking()  # an empty database gets its tables
    ((old, new), *_) = renamed.items()  # of artifacts: MLflow's figures and models lie there
    lines = (line.replace(f"s3://{old}/", f"s3://{new}/") for line in read_lines(folder, MLFLOW))
    with tracking.backend() as connection:
        dump.load_rows(connection, _without_aliases(lines))


def _without_aliases(lines: Iterable[str]) -> Iterable[str]:
    """MLflow serves by alias: the catalog sets them again once it knows what may serve."""
    return (line for line in lines if not line.startswith('["registered_model_aliases"'))


def _hidden(folder: Path, renamed: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(bucket, key, version) of what a plain delete hid since; what was purged is gone."""
    s3, hidden = storage.s3(), []
    listed = [(renamed[of], key, version) for of, key, version in map(json.loads, read_lines(folder, OBJECTS))]
    for bucket in dict.fromkeys(bucket for bucket, _, _ in listed):
        here = _keys(bucket)
        kept = {(version.key, version.version_id) for version in artifacts.list_versions(s3, bucket)}
        absent = [(key, version) for of, key, version in listed if of == bucket and key not in here]
        hidden += [(bucket, key, version) for key, version in absent if (key, version) in kept]
    return hidden


def _bring_back(hidden: Iterable[tuple[str, str, str]]) -> None:
    """Make these versions current again."""
    s3 = storage.s3()
    for bucket, key, version in hidden:
        with artifacts.named(s3, bucket, key):
            s3.copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": key, "VersionId": version})


def _keys(bucket: str, prefix: str = "") -> set[str]:
    return {version.key for version in artifacts.list_current(storage.s3(), bucket, prefix)}
