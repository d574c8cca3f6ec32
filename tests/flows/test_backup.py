"""A backup comes back without what was to be forgotten since: nothing that a ticket withdrew is served again."""

import errno
import json
import os
import uuid
from pathlib import Path
from unittest.mock import Mock

import pytest

from flows.forget import forget
from flows.learn import learn
from infra import database, storage, tracking
from infra.errors import UnreachableError, UnwritableError
from infra.settings import settings
from registry import aliases, suppression, versions
from registry.errors import StateError
from registry.records import Ticket, TicketState, VersionState
from registry.tables import now
from registry.versions import CHAMPION
from tasks import auditing, backup, opening, queries, restoring, suppression_journal, tickets
from tasks.backup import CATALOG, INDEX, MLFLOW, OBJECTS, back_up, read_index, read_lines
from tasks.certificates import verify_chain
from tasks.manifests import keys_in, load_json
from tasks.restoring import restore
from tests.flows import adversary
from tests.flows.conftest import deliver, make_stream


@pytest.fixture
def own_home(ready, s3, tmp_path, set_variable):  # noqa: ARG001
    """A home of its own, whose certificates are a chain of their own; the S3 is the session's."""
    access, secret = storage.keys()
    own = {"S3_ENDPOINT": s3.meta.endpoint_url, "S3_ACCESS_KEY": access, "S3_SECRET_KEY": secret}
    for name, value in {**own, "HOME": tmp_path / "own"}.items():
        set_variable(name, value)
    opening.open_home()
    yield tmp_path / "own"
    database.engine().dispose()


@pytest.fixture
def stream(own_home, backbone, inbox):  # noqa: ARG001
    """A stream of two batches."""
    # a name of its own: hidden states are kept by stream and record, and each test writes other texts
    stream = make_stream(f"backed-up-{uuid.uuid4().hex[:8]}", backbone, inbox)
    for number, topics in enumerate((["red", "blue"], ["green", "gold"])):
        deliver(inbox, f"batch-{number}", topics)
    learn(stream)
    return stream


def champion(stream):
    """What the catalog and MLflow serve; they have to agree."""
    with database.transaction() as session:
        ours = versions.alias_of(session, stream.name, CHAMPION)
    assert aliases.find_alias(tracking.prepare_tracking(), stream.name, CHAMPION) == ours
    return ours


def withdrawn(stream):
    with database.transaction() as session:
        return [
            v.version for v in versions.versions(session, stream.name, VersionState.QUARANTINED, VersionState.ERASED)
        ]


def open_for(stream, subject):
    return tickets.open_ticket(stream.name, tickets.resolve_targets(stream.name, [subject], []), "ann")


def test_restored_catalog_is_the_one_that_was_backed_up(stream, tmp_path):
    assert champion(stream) == 2
    back_up(tmp_path / "backup")
    with database.transaction() as session:
        served = versions.get_version(session, stream.name, 2).manifest_key
        blob = next(iter(keys_in(load_json(served, versions.manifest_digest(session, stream.name, 2)))))
    deliver(tmp_path, "batch-2", ["red", "blue"])
    learn(stream)
    assert champion(stream) == 3
    storage.s3().delete_object(Bucket="deciduous", Key=blob)  # somebody's mistake: a version is still below

    with pytest.raises(StateError, match="--replace"):
        restore(tmp_path / "backup", replace=False, dry_run=False)
    tried = restore(tmp_path / "backup", replace=True, dry_run=True)
    assert (tried["champions"], tried["objects_brought_back"]) == ({stream.name: 2}, 1)
    assert champion(stream) == 3
    report = restore(tmp_path / "backup", replace=True, dry_run=False)
    assert report["champions"] == {stream.name: 2}
    assert report["objects_brought_back"] == 1
    assert report["tickets_replayed"] == []
    assert champion(stream) == 2
    storage.s3().head_object(Bucket="deciduous", Key=blob)
    assert len(learn(stream)) == 1  # what came after the backup is taken in again
    back_up(tmp_path / "again")
    first, again = (next(iter(read_lines(tmp_path / name, CATALOG))) for name in ("backup", "again"))
    assert first == again


def test_ticket_that_came_after_the_backup_stays_in_force(stream, inbox, tmp_path):
    back_up(tmp_path / "backup")
    ticket = open_for(stream, "person-3")
    assert champion(stream) != 2
    report = restore(tmp_path / "backup", replace=True, dry_run=False)
    assert report["tickets_replayed"] == [ticket.ticket_id]
    assert champion(stream) != 2
    assert withdrawn(stream) == [1, 2]
    assert report["batches_rewritten_since"] == {}
    with database.transaction() as session:
        assert suppression.suppressed(session, stream.name)["subject"] != set()
    assert forget(ticket.ticket_id).state == TicketState.COMPLETE
    assert champion(stream) is not None

    # whoever it erased is delivered once more
    deliver(inbox, "batch-2", ["red", "blue"])
    learn(stream)
    (last,) = [row for row in queries.listing("batches", stream.name) if row["name"] == "batch-2"]
    assert (last["rows"], last["suppressed"]) == (36, 4)
    with database.transaction() as session:
        assert tickets.find_records(session, tickets.resolve_targets(stream.name, ["person-3"], [])) == {}

    # the same backup again: by now it names blobs that were purged, and the ticket is replayed all the same
    report = restore(tmp_path / "backup", replace=True, dry_run=False)
    assert report["tickets_replayed"] == [ticket.ticket_id]
    assert withdrawn(stream) == [1, 2]
    assert report["batches_rewritten_since"] == {stream.name: ["batch-0", "batch-1"]}
    assert champion(stream) not in (1, 2)
    assert stream.name in report["champions"]


@pytest.mark.usefixtures("own_home", "plain_steps")
def test_a_batch_of_which_a_ticket_rewrote_only_the_refused_rows_is_told(backbone, inbox, tmp_path):
    stream = make_stream(f"refused-{uuid.uuid4().hex[:8]}", backbone, inbox)
    rows = deliver(inbox, "batch-0", ["red", "blue"])
    rows[7] = {**rows[7], "who": "only-refused", "topic": None}
    (inbox / "batch-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    adversary.learn(stream)
    back_up(tmp_path / "backup")
    assert adversary.forget(open_for(stream, "only-refused").ticket_id).state == TicketState.COMPLETE
    report = restore(tmp_path / "backup", replace=True, dry_run=True)
    assert report["batches_rewritten_since"] == {stream.name: ["batch-0"]}


@pytest.mark.usefixtures("own_home")
def test_a_stream_that_the_catalog_never_knew_is_learned_without_whom_its_tickets_named(backbone, inbox):
    stream = make_stream(f"anew-{uuid.uuid4().hex[:8]}", backbone, inbox)
    deliver(inbox, "batch-0", ["red", "blue"])
    ticket = Ticket(f"t-{stream.name}", stream.name, TicketState.APPROVED, now(), now(), records=4)
    suppression_journal.note(ticket, tickets.resolve_targets(stream.name, ["person-3"], []))
    for _ in range(2):  # known by then, it is brought into force once
        learn(stream)
    (batch,) = queries.listing("batches", stream.name)
    assert (batch["rows"], batch["suppressed"]) == (36, 4)
    assert forget(ticket.ticket_id).state == TicketState.COMPLETE
    assert champion(stream) is not None


def test_certificates_that_came_after_the_backup_stay_in_the_chain(stream, inbox, tmp_path):
    """Otherwise the next one would follow the same as they do, and the folder of all of them would be no chain."""
    folder = inbox / f"{inbox.name}-other"
    folder.mkdir()
    deliver(folder, "batch-0", ["red", "blue"])
    other = make_stream(f"{stream.name}-other", stream.backbone, folder)
    learn(other)
    back_up(tmp_path / "backup")
    tickets_closed = [open_for(stream, "person-3").ticket_id, open_for(stream, "person-4").ticket_id]
    assert forget(tickets_closed[0]).state == TicketState.COMPLETE
    before = auditing.audit()
    assert before["certificates"] == 2
    report = restore(tmp_path / "backup", replace=True, dry_run=False)
    assert sorted(report["certificates_entered_again"]) == sorted(tickets_closed)
    restored = auditing.audit()
    assert (restored["certificates"], restored["newest_certificate"]) == (2, before["newest_certificate"])
    new = open_for(other, "person-5")
    assert forget(new.ticket_id).state == TicketState.COMPLETE
    issued = Path(opening.certificate_path(new.ticket_id)).parent.glob("*.json")
    chain = verify_chain(file.read_bytes() for file in issued)
    assert [each["ticket"] for each in chain] == [*report["certificates_entered_again"], new.ticket_id]
    assert auditing.audit()["certificates"] == 3


@pytest.mark.usefixtures("own_home")
def test_a_backup_before_an_upgrade_is_of_the_older_revision_and_fits_both(tmp_path):
    with database.replacing() as connection:
        database.bring(connection, "0003")
    opening.open_for_backup()
    index = back_up(tmp_path / "backup")
    newest = database.newest_revision()
    assert (index["revision"], database.revisions()) == ("0003", ("0003", newest))
    restore(tmp_path / "backup", replace=True, dry_run=False)
    assert database.revisions() == (newest, newest)


@pytest.mark.usefixtures("own_home")
def test_a_restoration_that_fails_leaves_mlflow_as_it_is_too(tmp_path, monkeypatch):
    """Its aliases are how what serves is loaded."""
    back_up(tmp_path / "backup")
    client = tracking.prepare_tracking()
    tracking.experiment(client, "mail")
    monkeypatch.setattr(restoring, "_make_safe", Mock(side_effect=UnreachableError("S3", "http://s3", "check it")))
    with pytest.raises(UnreachableError):
        restore(tmp_path / "backup", replace=True, dry_run=False)
    index = json.loads((tmp_path / "backup" / INDEX).read_text())
    (tmp_path / "backup" / INDEX).write_text(json.dumps({**index, "revision": "9999"}))
    with pytest.raises(StateError, match="backup is of revision 9999, newer than this code: update Deciduous"):
        restore(tmp_path / "backup", replace=True, dry_run=False)
    assert client.get_experiment_by_name("mail") is not None


@pytest.mark.usefixtures("own_home")
def test_a_backup_comes_back_beside_a_bucket_of_another_name(tmp_path, set_variable):
    tracking.experiment(tracking.prepare_tracking(), "mail")
    back_up(tmp_path / "backup")
    set_variable("ARTIFACT_BUCKET", "elsewhere")
    storage.prepare_buckets()
    restore(tmp_path / "backup", replace=True, dry_run=False)
    restored = tracking.prepare_tracking().get_experiment_by_name("mail")
    assert restored is not None
    assert restored.artifact_location == "s3://elsewhere/mlflow"


def test_deliveries_of_an_inbox_of_another_name_are_refused_and_the_setting_named(tmp_path, set_variable):
    (tmp_path / CATALOG).write_text('["object", {"uri": "s3://inbox/mail/1.jsonl"}]\n')
    index = {"buckets": ["deciduous", "inbox"]}
    assert restoring._renamed(tmp_path, index) == {"deciduous": "deciduous", "inbox": "inbox"}
    set_variable("INBOX_BUCKET", "letters")
    with pytest.raises(StateError, match="DECIDUOUS_INBOX_BUCKET=inbox"):
        restoring._renamed(tmp_path, index)


@pytest.mark.parametrize("index", ["[]", "{}", '{"format": "deciduous-backup/1", "files": {}}', '{"format": "x"'])
def test_an_index_that_does_not_vouch_for_every_file_is_refused(tmp_path, index):
    for name in (CATALOG, MLFLOW, OBJECTS):
        (tmp_path / name).write_text("")
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(StateError, match="is no backup"):
        read_index(tmp_path)


def test_a_file_that_a_backup_lacks_is_named(tmp_path):
    (tmp_path / INDEX).write_text('{"format": "deciduous-backup/1", "files": {}}')
    with pytest.raises(StateError, match=rf"is no backup, or not a whole one: \S*{CATALOG}: No such file"):
        read_index(tmp_path)


def test_a_full_disk_is_named_and_nothing_is_left_there(tmp_path, monkeypatch):
    def fill(path, _):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(backup, "_dump", fill)
    with pytest.raises(UnwritableError, match=r"the backup in \S+monday cannot be written: No space left .* free some"):
        back_up(tmp_path / "monday")
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_away_while_a_backup_is_written_is_named(tmp_path, monkeypatch):
    def away(*_):
        raise UnreachableError("S3", "http://s3", "check it")

    monkeypatch.setattr(backup, "_dump", away)
    with pytest.raises(UnreachableError, match="S3 at http://s3"):
        back_up(tmp_path / "monday")


def test_backup_names_no_subject_and_a_changed_one_is_refused(stream, tmp_path):
    assert champion(stream) == 2
    back_up(tmp_path / "backup")
    files = list((tmp_path / "backup").iterdir())
    assert not any(b"person-" in file.read_bytes() for file in files)
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}
    assert any(json.loads(line)[0] == "model_versions" for line in read_lines(tmp_path / "backup", MLFLOW))
    with pytest.raises(StateError, match="exists"):
        back_up(tmp_path / "backup")
    with (tmp_path / "backup" / CATALOG).open("a") as handle:
        handle.write("[]\n")
    with pytest.raises(StateError, match="damaged"):
        restore(tmp_path / "backup", replace=True, dry_run=False)
    with pytest.raises(StateError, match="is no backup"):
        restore(tmp_path, replace=True, dry_run=False)
    assert settings().home not in (tmp_path / "backup").parents
