"""Sign what was done, and close the ticket: complete, or an exception that names what is left."""

from sqlalchemy.orm import Session

from infra import database, keys
from infra.files import write_private
from infra.settings import settings
from registry import catalog, tickets
from registry.records import Ticket, TicketState
from registry.stream import Stream
from registry.tables import now
from tasks import blobs
from tasks.certificates import Certificate, digest, render_markdown, sign, verify
from tasks.narration import say
from tasks.retries import step
from tasks.saga import Detail, once

SCOPE = (
    "The named records were removed from every store below; every artifact that they shaped was rebuilt from the "
    "records that remain and compared, byte for byte, with one trained from scratch without them. Structural decisions "
    "(which batches expanded, which adapters were merged, recipes and seeds) were taken while the records were present "
    "and are kept. The claim holds for requests that do not adapt to earlier answers of the model."
)


@step("certify-{ticket.ticket_id}")
def certify(stream: Stream, ticket: Ticket, rebuilt: Detail, compared: Detail, purged: Detail, swept: Detail) -> Detail:
    """The signed certificate, chained to the one before; its bytes lie in S3 and beside the home."""

    def work() -> Detail:
        with database.transaction() as session:
            logged = tickets.get_ticket(session, ticket.ticket_id).certificate_key
            if logged is None:
                content = _content(session, stream, ticket, rebuilt, compared, purged, swept)
                certificate = sign(content, keys.signing_key())
                stored = blobs.store(blobs.shared_prefix(stream.name), node, "certificate", certificate)
                catalog.put_object(session, stored)
                tickets.add_certificate(
                    session, ticket.ticket_id, digest(certificate), content["previous_certificate"], stored.key
                )
        # read back: an interrupted run may have logged it before, and there is one certificate a ticket
        certificate = blobs.load_bytes(node, "certificate")
        content = verify(certificate)
        path = settings().home / "certificates" / f"{ticket.ticket_id}.json"
        write_private(path, certificate)
        write_private(path.with_suffix(".md"), render_markdown(content).encode())
        stored = blobs.get(node, "certificate")
        return {"key": stored.key, "sha256": stored.sha256, "path": str(path), "guarantee": content["guarantee"]}

    node = f"ticket:{ticket.ticket_id}"
    return once(ticket.ticket_id, "certify", work)


def _content(
    session: Session,
    stream: Stream,
    ticket: Ticket,
    rebuilt: Detail,
    compared: Detail,
    purged: Detail,
    swept: Detail,
) -> Certificate:
    resolved = tickets.done_step(session, ticket.ticket_id, "resolve") or {}
    return {
        "format": "deciduous-deletion-certificate/1",
        "ticket": ticket.ticket_id,
        "stream": stream.name,
        "received_at": ticket.received_at.isoformat(),
        "due_at": ticket.due_at.isoformat(),
        "certified_at": now().isoformat(),
        "guarantee": guarantee(resolved, rebuilt, compared, swept),
        "scope": SCOPE,
        "records": resolved["records"],
        "suppression_epoch": tickets.ticket_epoch(session, ticket.ticket_id),
        "targets": [h for _, h in tickets.targets_of(session, ticket.ticket_id)],
        "closure": {"shards": resolved["shards"], "repairs": resolved["repairs"]},
        "artifacts": _before_and_after(session, resolved),
        "rebuilt": rebuilt,
        "comparison": compared["compared"],
        "purge": purged,
        "sweep": swept,
        "recipe_digest": stream.recipe_digest,
        "previous_certificate": tickets.last_certificate(session),
    }


def guarantee(resolved: Detail, rebuilt: Detail, compared: Detail, swept: Detail) -> str:
    """E0 where every rebuilt artifact was compared and is byte-equal, and the sweep looked and found nothing.

    Anything else is no guarantee: a node that was rebuilt and not compared, or records without a marker to look for.
    """
    kept = {f"adapter:{adapter}" for adapter, action in rebuilt["actions"].items() if action != "drop"}
    equal = all(found["equal"] for found in compared["compared"].values())
    looked = swept["markers"] > 0 or resolved["records"] == 0
    return "E0" if equal and kept <= set(compared["compared"]) and looked and swept["hits"] == 0 else "none"


def _before_and_after(session: Session, resolved: Detail) -> list[dict[str, str | None]]:
    changed = []
    for old in resolved["before"]:
        new = catalog.find_object(session, old["owner"], old["kind"])
        now_sha = None if new is None else new.sha256
        if now_sha != old["sha256"]:
            changed.append({"artifact": f"{old['owner']}/{old['kind']}", "before": old["sha256"], "after": now_sha})
    return changed


@step("close-{ticket.ticket_id}")
def close(ticket: Ticket, certificate: Detail, swept: Detail) -> Ticket:
    complete = certificate["guarantee"] == "E0"
    state = TicketState.COMPLETE if complete else TicketState.EXCEPTION
    note = "" if complete else f"the sweep found {swept['hits']} hits, or an artifact differs; see the certificate"
    with database.transaction() as session:
        tickets.set_ticket_state(session, ticket.ticket_id, state, note)
        closed = tickets.get_ticket(session, ticket.ticket_id)
    say(f"  ticket {ticket.ticket_id} is {state.value}, guarantee {certificate['guarantee']}: {certificate['path']}")
    return closed
