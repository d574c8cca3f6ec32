"""Sign what was done, and close the tickets: complete, or an exception that names what is left and how to go on."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.orm import Session

from infra import database, signing
from infra.files import remove_partial, remove_private, write_private
from infra.settings import settings
from registry import ownership, ticket_log, tickets
from registry.records import StoredObject, Ticket, TicketState
from registry.stream import Stream
from registry.tables import now
from tasks import blobs, certificate_journal
from tasks.alias_moves import serves_clean
from tasks.certificates import Certificate, digest, render_markdown, sign, verify
from tasks.held_back import held_file
from tasks.markers import escrow, load_marked, names_of
from tasks.monitoring import MONITOR, hear_monitors
from tasks.narration import say
from tasks.policies.guarantee import guarantee, is_clean
from tasks.retries import step
from tasks.saga import Detail
from tasks.tickets import AUTOMATIC

EXACT = (
    "The named records were removed from every store below; every artifact that they shaped was rebuilt from the "
    "records that remain and compared, {how}, with one trained from scratch without them. Structural decisions "
    "(which batches expanded and in which layers, which adapters were merged, recipes and seeds) were taken while the "
    "records were present and are kept. The claim holds for requests that do not adapt to earlier answers of the model."
)

NOTHING_FOUND = (
    "The ticket names no record that was in the catalog: there was nothing to rebuild, and no text to search for. Rows "
    "that it names were removed from those objects of our inbox that may hold some; what is delivered with its names "
    "from now on is dropped."
)

SCOPES = {
    "E0": EXACT.format(how="byte for byte"),
    "E1": EXACT.format(how="as closely as two such trainings are to each other: this device gives no bytes twice"),
    "A": "Nothing is claimed as deleted. The named records' rows were removed; the adapters below were pushed off them "
    "and may still hold what they learned. It is an interim: the ticket is open until they are trained again.",
    "Q": "Nothing is claimed as deleted. No version that serves was shaped by the named records; what is left to do is "
    "named below.",
    "none": "Nothing is claimed. What is left to do is named below.",
}

SHOWN = 5
"""Objects and files that an exception names; its certificate has all."""


@step("certify-{ticket.ticket_id}")
def certify(stream: Stream, ticket: Ticket, together: Sequence[Ticket], details: Detail) -> Detail:
    """The ticket's signed certificate, chained to the one before; its bytes lie in S3 and beside the home.

    `details` are what the steps recorded, by name; tickets that are worked together share them. The certificate, its
    place in the chain and the step's note are one transaction: a repeated run finds all of them or none.
    """
    served_clean = serves_clean(stream)
    with database.transaction() as session:
        noted = tickets.done_step(session, ticket.ticket_id, "certify")
        if noted is None:
            previous = tickets.last_certificate(session)
            details = {**details, "heard": hear_monitors(session, ticket, details["monitor"])}
            details["accepted"] = was_reopened_since(session, ticket, MONITOR)
            details["unfinished"] = unfinished_before(session, ticket, together)
            clean = served_clean and not details["unfinished"]  # what those tickets suppressed may serve
            content = _content(session, stream, ticket, together, details, previous, clean)
            certificate = sign(content, signing.signing_key(), signing.key_changes())
            stored = blobs.store(blobs.shared_prefix(stream.name), _node(ticket), "certificate", certificate)
            enter_certificate(session, ticket.ticket_id, stored, previous)
            noted = {"guarantee": content["guarantee"], "left": what_is_left(ticket.ticket_id, details)}
            tickets.finish_step(session, ticket.ticket_id, "certify", noted, 0.0)
    certificate = blobs.load_bytes(_node(ticket), "certificate")
    certificate_journal.note(
        stream.name, certificate
    )  # now that it is committed: one that was not would fork the chain
    _write_beside_home(ticket, certificate)
    return noted


def enter_certificate(session: Session, ticket_id: str, stored: StoredObject, previous: str) -> None:
    """Name a certificate in the catalog and append it to the log: the newest by its kind, and each by its digest, for
    the chain needs those before a reopening too."""
    ownership.put_objects(session, [stored, replace(stored, kind=f"certificate:{stored.sha256[:16]}")])
    tickets.add_certificate(session, ticket_id, stored.sha256, previous, stored.key)


def _write_beside_home(ticket: Ticket, certificate: bytes) -> None:
    path = settings().home / "certificates" / f"{ticket.ticket_id}.json"
    if path.exists() and path.read_bytes() != certificate:
        path.replace(path.with_stem(f"{ticket.ticket_id}-{digest(path.read_bytes())[:16]}"))
    for each in (path, path.with_suffix(".md")):
        remove_partial(each)
    write_private(path, certificate)
    write_private(path.with_suffix(".md"), render_markdown(verify(certificate)).encode())


def _node(ticket: Ticket) -> str:
    return f"ticket:{ticket.ticket_id}"


def _content(
    session: Session,
    stream: Stream,
    ticket: Ticket,
    together: Sequence[Ticket],
    details: Detail,
    previous: str,
    served_clean: bool,
) -> Certificate:
    resolved, ticket_id = details["resolve"], ticket.ticket_id
    left, exact = what_is_left(ticket_id, details), all(c["equal"] for c in details["compare"]["compared"].values())
    level = guarantee(exact, len(left), len(details["rebuild"].get("suppressed", {})), served_clean)
    records = resolved["tickets"][ticket_id]["records"]
    return {
        "format": "deciduous-deletion-certificate/3",
        "ticket": ticket_id,
        "stream": stream.name,
        "received_at": ticket.received_at.isoformat(),
        "due_at": ticket.due_at.isoformat(),
        "certified_at": now().isoformat(),
        "history": [
            {"what": event.kind, "by": event.by, "at": event.at.isoformat()}
            for event in ticket_log.events_of(session, ticket_id)
        ],
        "log_digest": ticket_log.check(session)[1],
        "guarantee": level,
        "left": left,
        "scope": SCOPES[level] if records or left else NOTHING_FOUND,
        "records": records,
        "suppression_epoch": tickets.ticket_epoch(session, ticket_id),
        "targets": [keyed for _, keyed in tickets.targets_of(session, ticket_id)],
        "worked_together": len(together),
        "closure": {"shards": resolved["shards"], "repairs": resolved["repairs"]},
        "artifacts": _before_and_after(session, resolved),
        "rebuilt": details["rebuild"],
        "comparison": details["compare"]["compared"],
        "environment": details["compare"].get("environment"),
        "monitors": details["heard"],
        "purge": details["purge"],
        "sweep": {**details["sweep"], **_markers_of(ticket_id, details["sweep"])},
        "recipe_digest": stream.recipe_digest,
        "previous_certificate": previous,
    }


def what_is_left(ticket_id: str, details: Detail) -> list[str]:
    """Why the ticket is not complete: nothing where every rebuilt artifact was compared and is clean, no store refused
    anything, the sweep looked and found nothing, no earlier ticket for the same is unfinished, and no monitor raised an
    alarm that nobody has looked at."""
    actions, compared = details["rebuild"]["actions"], details["compare"]["compared"]
    kept = {f"adapter:{adapter}" for adapter, action in actions.items() if action not in ("drop", "suppress")}
    different = sorted(node for node, found in compared.items() if not is_clean(found))
    left = [f"adapter:{a} was suppressed, not trained again" for a in sorted(details["rebuild"].get("suppressed", {}))]
    left += [f"{node} differs from one made without the records" for node in different]
    left += [f"{node} was rebuilt and not compared" for node in sorted(kept - set(compared))]
    planned = {repair["adapter_id"]: repair["action"] for repair in details["resolve"]["repairs"]}
    left += [f"adapter:{a} was not repaired (planned: {planned[a]})" for a in sorted(planned.keys() - actions.keys())]
    left += details["purge"]["refused"]
    swept = details["sweep"]
    left += [f"the sweep found {hits} hits in {store}" for store, hits in sorted(swept["by_store"].items()) if hits]
    if found_in := swept.get("found_in"):
        more = f" and {len(found_in) - SHOWN} more" if len(found_in) > SHOWN else ""
        left.append(f"take them away, with every older version, from {', '.join(found_in[:SHOWN])}{more}")
    if streams := swept.get("also_learned_by"):
        left.append(f"the same was learned by {', '.join(streams)}: erase there first whose it is (deciduous erase)")
    if details["resolve"]["tickets"][ticket_id]["records"] and not any(_markers_of(ticket_id, swept).values()):
        left.append("no marker of the records was there to look for")
    left += details["unfinished"]
    if not details["accepted"]:
        left += [f"membership monitor, {alarm}" for alarm in details["heard"].get("alarms", ())]
    return left


def _markers_of(ticket_id: str, swept: Detail) -> dict[str, int]:
    """How many markers of the ticket were looked for, and how many were not: who stays holds them too."""
    return {"markers": swept["markers"][ticket_id], "shared": swept.get("shared", {}).get(ticket_id, 0)}


def unfinished_before(session: Session, ticket: Ticket, together: Sequence[Ticket]) -> list[str]:
    """Tickets that took effect earlier, name some of the same, one perhaps a record and the other its subject, and are
    not complete: the records went with their rows, and what these shaped is theirs to rebuild."""
    named = set(tickets.targets_of(session, ticket.ticket_id))
    epoch, worked = tickets.ticket_epoch(session, ticket.ticket_id), {each.ticket_id for each in together}
    others = tickets.tickets(session, ticket.stream, *tickets.WORKED, TicketState.EXCEPTION)
    return [
        f"ticket {other.ticket_id}, which names the same, is not complete: finish it first"
        for other in others
        if other.ticket_id not in worked
        and tickets.ticket_epoch(session, other.ticket_id) < epoch
        and named & {*tickets.targets_of(session, other.ticket_id), *names_of(load_marked(other.ticket_id))}
    ]


def was_reopened_since(session: Session, ticket: Ticket, step_name: str) -> bool:
    """Whether a person took the ticket up again after this step: an alarm that it raised has been looked at."""
    noted = {row.step: row.finished_at for row in tickets.steps_of(session, ticket.ticket_id)}
    events = ticket_log.events_of(session, ticket.ticket_id)
    approved = [event.at for event in events if event.kind == TicketState.APPROVED]
    return step_name in noted and any(at > noted[step_name] for at in approved)


def _before_and_after(session: Session, resolved: Detail) -> list[dict[str, str | None]]:
    changed = []
    for old in resolved["before"]:
        new = ownership.find_object(session, old["owner"], old["kind"])
        now_sha = None if new is None else new.sha256
        if now_sha != old["sha256"]:
            changed.append({"artifact": f"{old['owner']}/{old['kind']}", "before": old["sha256"], "after": now_sha})
    return changed


@step("close-{ticket.ticket_id}")
def close(ticket: Ticket, certified: Detail) -> Ticket:
    """Complete where nothing is left; an exception otherwise. What was held back for sweep and monitors goes before
    completion: every step is noted by then, and none of them asks for it again."""
    left = certified["left"]
    state = TicketState.EXCEPTION if left else TicketState.COMPLETE
    note = "; ".join([*left, f"then: deciduous ticket reopen {ticket.ticket_id} --reason WHY"]) if left else ""
    if not left:  # first: nobody looks at a ticket again once it is complete
        remove_private(escrow(ticket.ticket_id))
        remove_private(held_file(ticket.ticket_id))
    with database.transaction() as session:
        closed = tickets.get_ticket(session, ticket.ticket_id)
        if closed.state == TicketState.IN_PROGRESS:
            closed = tickets.set_ticket_state(session, ticket.ticket_id, state, note, AUTOMATIC)
    say(f"  ticket {ticket.ticket_id} is {state.value}, guarantee {certified['guarantee']}")
    for reason in left:
        say(f"  LEFT: {reason}")
    return closed
