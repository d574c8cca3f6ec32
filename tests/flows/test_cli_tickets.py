"""Deletion from the command line: a file of ids, a dry run, what people do to a ticket, and a certificate elsewhere."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from botocore.exceptions import ClientError

from flows import actions
from flows.learn import learn
from infra import storage
from registry.errors import StateError
from registry.records import Ticket, TicketState
from registry.sections import Approval
from registry.tables import now
from tasks import tickets
from tests.flows.conftest import deliver, make_stream
from tests.flows.test_cli import call, known

pytestmark = pytest.mark.usefixtures("ready")
VERIFY = "import sys; from flows.cli import main; sys.argv[0] = 'deciduous'; main()"


@pytest.fixture
def ask(capsys, monkeypatch):
    """What a verb prints as JSON, and its exit code."""

    def asked(*words: str):
        code, out, errors = call(capsys, monkeypatch, *words, "--json")
        return code, json.loads(out) if out else errors

    return asked


def learned(name: str, backbone, inbox):
    stream = make_stream(name, backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    return stream


def verified_elsewhere(certificate: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """As whoever was sent the file alone would check it: no home, no setting, no key."""
    command = [sys.executable, "-c", VERIFY, "verify", certificate.name]
    return subprocess.run(command, cwd=folder, env={"HOME": str(folder)}, capture_output=True, text=True, check=False)


def test_going_on_with_a_ticket_of_a_deployed_stream_starts_the_run_that_it_has_lost(monkeypatch):
    """The event that starts a ticket's run comes once: whoever followed one whose run had failed waited for ever."""
    started, ticket = [], Ticket("t-1", "mail", TicketState.COMPLETE, now(), now(), 4)
    monkeypatch.setattr(actions.deploying, "is_deployed", lambda *_: True)
    monkeypatch.setattr(actions, "start_missed", SimpleNamespace(fn=lambda *asked: started.append(asked)))
    monkeypatch.setattr(actions.tickets, "read_ticket", lambda _: ticket)
    actions.erase("mail", [], [], None, "t-1")
    assert started == [("mail", "t-1")]


@pytest.mark.parametrize(
    "words", [("erase", "numbered", "--subject", "ann"), ("ticket", "deny", "nosuch", "--reason", "why")]
)
def test_who_has_a_number_and_no_name_can_do_it_too(ask, backbone, inbox, monkeypatch, words):
    """As in a container that was given another user."""
    known("numbered", backbone, inbox)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", Mock(side_effect=KeyError("getpwuid(): uid not found: 4242")))
    opened = Mock(side_effect=StateError("that far"))
    monkeypatch.setattr(tickets, f"{'open' if words[0] == 'erase' else 'deny'}_ticket", opened)
    assert ask(*words)[0] == 1
    assert f"uid {os.getuid()}" in opened.call_args.args


def test_a_ticket_that_no_note_can_be_kept_of_is_not_opened(ask, backbone, inbox, monkeypatch):
    """Of keys that may read and not write."""
    known("unnoted", backbone, inbox)
    answer = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    monkeypatch.setattr(storage.s3(), "put_object", Mock(side_effect=ClientError(answer, "PutObject")))
    code, errors = ask("erase", "unnoted", "--subject", "ann")
    assert (code, "refused s3://deciduous/tickets/unnoted/" in errors, "mend these keys" in errors) == (1, True, True)
    assert ask("ls", "tickets", "--stream", "unnoted") == (0, [])


def test_a_file_of_ids_is_erased_and_anybody_verifies_the_certificate(ask, backbone, inbox, tmp_path):
    learned("by-file", backbone, inbox)
    listed = tmp_path / "ids.csv"
    listed.write_text("subject,record\nperson-1,\n,01-2\nperson-1,01-11\n")
    code, planned = ask("erase", "by-file", "--file", str(listed), "--dry-run")
    assert (code, planned["records"], len(planned["shards"])) == (0, 5, 1)
    assert [(each["adapter_id"], each["action"]) for each in planned["repairs"]] == [("by-file-a1", "retrain")]
    assert planned["rows_to_train_again"] == 35
    assert ask("ls", "tickets", "--stream", "by-file") == (0, [])  # a dry run opens none

    code, closed = ask("erase", "by-file", "--file", str(listed))
    assert (code, closed["state"], closed["records"]) == (0, "complete", 5)
    sent = tmp_path / "sent" / "certificate.json"
    sent.parent.mkdir()
    sent.write_bytes(Path(closed["certificate"]).read_bytes())
    done = verified_elsewhere(sent, sent.parent)
    assert (done.returncode, "valid" in done.stdout, "E0" in done.stdout) == (0, True, True), done.stderr
    assert list(sent.parent.iterdir()) == [sent]  # no home was made for it
    sent.write_bytes(sent.read_bytes().replace(b'"records":5', b'"records":4'))
    done = verified_elsewhere(sent, sent.parent)
    assert (done.returncode, "valid" in done.stdout) == (1, False)


def test_a_file_without_ids_is_refused(ask, tmp_path):
    listed = tmp_path / "ids.csv"
    listed.write_text("name\nperson-1\n")
    code, errors = ask("erase", "by-file", "--file", str(listed))
    assert code == 1
    assert "needs a header with a column `subject` or `record`" in errors


def test_people_take_a_ticket_through_its_states(ask, backbone, inbox):
    stream = make_stream("by-hand", backbone, inbox)
    approval = stream.gates.approval.model_copy(update={"erasure": Approval.ALWAYS})
    stream = stream.model_copy(update={"gates": stream.gates.model_copy(update={"approval": approval})})
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    code, errors = ask("erase", "by-hand", "--subject", "person-1")
    assert code == 1
    assert "waits for a person" in errors
    (opened,) = ask("ls", "tickets", "--stream", "by-hand")[1]
    ticket_id = opened["ticket_id"]
    assert ask("ticket", "verify", ticket_id, "--by", "ann")[1]["state"] == "verified"
    code, extended = ask("ticket", "extend", ticket_id, "--by", "ann", "--reason", "complex")
    assert (code, extended["due_at"] > opened["due_at"]) == (0, True)
    code, planned = ask("erase", "by-hand", "--ticket", ticket_id, "--dry-run")
    assert (code, planned["records"], planned["rows_to_train_again"]) == (0, 4, 36)
    assert ask("ls", "tickets", "--stream", "by-hand")[1][0]["state"] == "verified"  # nothing was worked
    assert ask("ticket", "extend", ticket_id, "--by", "ann", "--reason", "again")[0] == 1
    assert ask("requests", "by-hand")[1][0]["what"] == ticket_id
    assert ask("ticket", "approve", ticket_id, "--by", "bo")[1]["state"] == "approved"
    assert ask("requests", "by-hand") == (0, [])
    assert ask("ticket", "deny", ticket_id, "--by", "bo", "--reason", "too late")[0] == 1
    assert ask("erase", "by-hand", "--ticket", ticket_id)[1]["state"] == "complete"
    assert ask("ticket", "reopen", ticket_id, "--by", "ann", "--reason", "no reason")[0] == 1
    assert ask("ticket", "overdue", "--stream", "by-hand") == (0, [])
    code, audited = ask("ticket", "audit")
    assert (code, audited["certificates"] >= 1) == (0, True)
    assert ask("erase", "by-hand", "--subject", "person-2")[0] == 1
    denied = ask("ls", "tickets", "--stream", "by-hand")[1][-1]["ticket_id"]
    assert ask("ticket", "deny", denied, "--by", "ann", "--reason", "identity not shown")[1]["state"] == "denied"
    assert ask("requests", "by-hand") == (0, [])


@pytest.fixture
def opened(backbone, inbox):
    """A ticket of a stream that has learned nothing."""
    stream = known("unlearned", backbone, inbox)
    return tickets.open_ticket(stream.name, tickets.resolve_targets(stream.name, ["ann"], []), "test").ticket_id


@pytest.mark.parametrize("more", [("--subject", "bo"), ("--record", "7"), ("--file", "ids.csv"), ("--approximate",)])
def test_a_ticket_names_what_it_forgets_itself(ask, opened, more):
    code, errors = ask("erase", "unlearned", "--ticket", opened, *more)
    assert (code, "give --ticket alone" in errors) == (1, True)


def test_only_an_exception_is_reopened(ask, opened):
    code, errors = ask("ticket", "reopen", opened, "--by", "ann", "--reason", "hurry")
    assert (code, f"{opened}' is approved, and only an exception is reopened" in errors) == (1, True)
    assert f"deciduous erase unlearned --ticket {opened}" in errors


def test_a_dry_run_of_a_ticket_takes_no_names_either(ask, opened):
    code, errors = ask("erase", "unlearned", "--ticket", opened, "--subject", "bo", "--dry-run")
    assert (code, "give --ticket alone" in errors) == (1, True)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_ticket_is_worked_in_its_own_stream(ask, opened, dry):
    code, errors = ask("erase", "by-file", "--ticket", opened, *dry)
    assert (code, f"deciduous erase unlearned --ticket {opened}" in errors) == (1, True)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("named", [("--subject", ""), ("--record", " "), ("--subject", "ann", "--subject", "\u3000")])
def test_a_blank_names_nobody(ask, opened, named, dry):
    code, errors = ask("erase", "unlearned", *named, *dry)
    assert (code, "a blank names nobody" in errors) == (1, True), opened


def test_a_ticket_that_reaches_no_record_says_so(ask, opened):
    code, planned = ask("erase", "unlearned", "--subject", "nobody", "--dry-run")
    assert (code, planned["records"]) == (0, 0)
    assert planned["note"] == "no record of them is known; a ticket keeps them out from then on"
    code, closed = ask("erase", "unlearned", "--ticket", opened)
    assert (code, closed["state"], closed["records"]) == (0, "complete", 0)
    assert closed["note"] == "no record of them is known; they are kept out from now on"


def test_what_goes_into_a_pipe_shows_whole_ids(capsys, monkeypatch, opened):
    assert opened in call(capsys, monkeypatch, "ls", "tickets", "--stream", "unlearned")[1]


def test_a_file_that_excel_wrote_is_read(ask, opened, tmp_path):
    (tmp_path / "ids.csv").write_text("subject\nJürgen\n", encoding="utf-8-sig")
    code, planned = ask("erase", "unlearned", "--file", str(tmp_path / "ids.csv"), "--dry-run")
    assert (code, planned["records"]) == (0, 0), opened
    (tmp_path / "ids.csv").write_text("subject\nJürgen\n", encoding="latin-1")
    code, errors = ask("erase", "unlearned", "--file", str(tmp_path / "ids.csv"), "--dry-run")
    assert (code, "ids.csv is not UTF-8" in errors) == (1, True)
