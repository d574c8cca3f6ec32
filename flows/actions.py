"""What the verbs do: open the home, call a flow, give back a record to show."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from tenacity import Retrying, retry_if_result, wait_fixed

from flows import deployments
from flows.approve import approve
from flows.consolidate import consolidate
from flows.forget import forget
from flows.learn import learn
from flows.predict import predict, predict_batch
from infra import database
from infra.orchestration import open_api
from infra.users import user_name
from infra.workers import PoolType
from registry.errors import SourceError, StateError
from registry.records import Request, Ticket
from registry.stream import Stream
from registry.tickets import WORKED
from tasks import approvals, auditing, deploying, exporting, forgetting, opening, queries, source, tickets
from tasks.deploying import Change
from tasks.exclusion import alone
from tasks.held_batches import discard_batch, reopen_batch
from tasks.missed import start_missed
from tasks.retirement import check_reinstate, check_retire, reinstate_adapter, retire_adapter

Record = dict[str, Any]

NONE_KNOWN = "no record of them is known"


def run_stream(stream: Stream, limit: int | None) -> Record:
    opening.open_home()
    open_api()
    finished = learn(stream, limit)
    return {"finished_batches": len(finished), **queries.status(stream.name)[0]}


def deploy(stream: Stream, kind: PoolType, dry_run: bool) -> list[Change]:
    opening.open_home()
    return deployments.deploy(stream, kind, dry_run)


def undeploy(stream: str, dry_run: bool) -> list[Change]:
    """Where nothing is deployed under the name, it has to be a stream's all the same."""
    changes = deployments.undeploy(stream, dry_run)
    if not changes:
        database.migrate()
        opening.stream_of(stream)
    return changes


def answer(request_id: str, approved: bool, by: str, note: str) -> str:
    """Resume the run that waits for the answer; where none does, record it and carry it out here."""
    opening.open_home()
    word = f"{request_id} {'approved' if approved else 'refused'} by {by}"
    if approvals.resume_waiting(request_id, approved, by, note):
        return f"{word}; the run that waited carries it out"
    approvals.record_answer.fn(request_id, approved, by, note)
    approve(request_id)
    return word


def waiting_requests(stream: str | None) -> list[Request]:
    opening.open_home()
    return approvals.waiting(None if stream is None else opening.stream_of(stream).name)


def preview(stream: Stream, limit: int | None) -> Record:
    """The objects that `run` would take in."""
    opening.open_home()
    found = source.list_objects(stream.source)
    tags = opening.known_tags(stream.name)
    return {"stream": stream.name, "new_objects": [uri for uri, tag in found if tag not in tags][:limit]}


def predict_file(stream: str, file: str, groups: list[str], caller: str | None, out: str | None) -> list[Record]:
    opening.open_home()
    return predict(stream, file, groups, out, SecretStr(caller) if caller else None)


def predict_source(stream: str, source: str, groups: list[str], caller: str | None, out: str) -> list[str]:
    opening.open_home()
    return predict_batch(stream, source, out, groups, SecretStr(caller) if caller else None)


def erase(
    stream: str,
    subjects: Sequence[str],
    records: Sequence[str],
    file: Path | None,
    ticket_id: str | None,
    approximate: bool = False,
) -> Record:
    """Open a ticket and work it, or go on with one. Subjects become keyed hashes before anything is written."""
    opening.open_home()
    if ticket_id is not None:
        _require_own(stream, ticket_id, bool(subjects or records or file or approximate))
        if deploying.is_deployed("forget", stream):
            start_missed.fn(stream, ticket_id)  # its run may have failed: the event that started it comes once
    else:
        targets = _targets(stream, subjects, records, file)
        ticket_id = tickets.open_ticket(stream, targets, user_name(), approximate).ticket_id
    closed = follow(ticket_id) if deploying.is_deployed("forget", stream) else forget(ticket_id)
    told = {} if closed.records else {"note": f"{NONE_KNOWN}; they are kept out from now on"}
    return {**asdict(closed), **told, "certificate": opening.certificate_path(ticket_id)}


def follow(ticket_id: str) -> Ticket:
    """Wait until the run that the ticket's event started has closed it; a person may stop waiting, the run goes on."""
    closing = Retrying(wait=wait_fixed(1), retry=retry_if_result(lambda ticket: ticket.state in WORKED))
    return closing(lambda: tickets.read_ticket(ticket_id))


def rework(ticket_id: str, by: str, reason: str) -> Ticket:
    """Reopen an exception and work it."""
    opening.open_home()
    tickets.reopen_ticket(ticket_id, by, reason)
    return forget(ticket_id)


def audit() -> Record:
    """How long the chains of this home are; raises where one of them is broken."""
    opening.open_home()
    return auditing.audit()


def plan_erasure(
    stream: str, subjects: Sequence[str], records: Sequence[str], file: Path | None, ticket_id: str | None
) -> Record:
    """The closure of a ticket, its plan and its price; opens nothing."""
    opening.open_home()
    if ticket_id is not None:
        _require_own(stream, ticket_id, bool(subjects or records or file))
        named = tickets.targets_of_ticket(ticket_id)
    else:
        named = _targets(opening.stream_of(stream).name, subjects, records, file)
    plan, found = forgetting.make_plan(stream, named)
    count = sum(map(len, found.values()))
    return {
        "records": count,
        **({} if count else {"note": f"{NONE_KNOWN}; a ticket keeps them out from then on"}),
        "shards": plan.shard_ids,
        "repairs": [asdict(repair) for repair in plan.repairs],
        "rows_to_train_again": plan.rows_to_train,
    }


def _require_own(stream: str, ticket_id: str, names_more: bool) -> None:
    """A ticket is worked as it was opened, in its own stream."""
    if names_more:
        raise StateError(
            f"ticket {ticket_id!r} names what it forgets already: give --ticket alone, or open another ticket with "
            "--subject, --record, --file or --approximate"
        )
    if (owner := tickets.read_ticket(ticket_id).stream) != stream:
        raise StateError(
            f"ticket {ticket_id!r} is one of stream {owner!r}: deciduous erase {owner} --ticket {ticket_id}"
        )


def _targets(stream: str, subjects: Sequence[str], records: Sequence[str], file: Path | None) -> list[tuple[str, str]]:
    if file is not None:
        listed = _listed(file)
        subjects, records = [*subjects, *listed["subject"]], [*records, *listed["record"]]
    if not subjects and not records:
        raise StateError("nothing to erase: give --subject, --record or --file")
    if not all(name.strip() for name in (*subjects, *records)):
        raise StateError("a --subject or --record is blank, and a blank names nobody; give the name or the id")
    return tickets.resolve_targets(stream, subjects, records)


def _listed(file: Path) -> dict[str, list[str]]:
    """The names by column; an empty cell names nobody."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:  # Excel begins a file with a mark
            rows = list(csv.DictReader(handle))
    except OSError as error:
        raise SourceError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SourceError(f"{file} is not UTF-8, so names in it could be others; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise SourceError(f"{file} is no CSV: {error}; save it as CSV in UTF-8") from None
    if not rows or not {"subject", "record"} & set(rows[0]):
        raise SourceError(f"{file} needs a header with a column `subject` or `record`, and rows")
    return {kind: [row[kind] for row in rows if (row.get(kind) or "").strip()] for kind in ("subject", "record")}


def merge(stream: str, adapters: Sequence[str], dry_run: bool) -> Record:
    opening.open_home()
    if len(adapters) not in (0, 2):
        raise StateError("a merge takes two adapters, or none for the closest pair")
    pair = (adapters[0], adapters[1]) if adapters else None
    outcome = consolidate(opening.stream_of(stream), pair, dry_run)
    return {"accepted": False, "reason": "no two adapters may be merged"} if outcome is None else asdict(outcome)


def export(adapter_id: str, folder: Path) -> str:
    opening.open_home()
    written = exporting.export_adapter(adapter_id, folder)
    return f"wrote {', '.join(path.name for path in written)} in {folder}; a deletion does not reach this copy"


def retire(adapter_id: str, reason: str, dry_run: bool) -> str:
    opening.open_home()
    check_retire(adapter_id)
    if not dry_run:
        with alone(queries.describe(adapter_id)["stream"], wait_seconds=0):  # learning would judge it again
            retire_adapter.fn(adapter_id, reason)
    return f"{'would retire' if dry_run else 'retired'} {adapter_id}; the next version serves without it"


def rejudge(named: str) -> str:
    opening.open_home()
    batch = reopen_batch.fn(opening.batch_id_of(named))
    return f"the next run of {batch.stream!r} decides on {batch.name} again"


def discard(named: str) -> str:
    opening.open_home()
    batch = discard_batch.fn(opening.batch_id_of(named))
    return f"discarded {batch.name}: its {batch.rows_left} records may come again in another object"


def reinstate(adapter_id: str, reason: str, dry_run: bool) -> str:
    opening.open_home()
    stream = opening.stream_of(queries.describe(adapter_id)["stream"])
    if dry_run:
        check_reinstate(stream, adapter_id)
        return f"would judge {adapter_id} again on the held-out rows of its shards"
    with alone(stream.name, wait_seconds=0):
        verdict = reinstate_adapter.fn(stream, adapter_id, reason)
    return f"{adapter_id} {'serves from the next version on' if verdict.passed else 'waits'}: {verdict.reason}"
