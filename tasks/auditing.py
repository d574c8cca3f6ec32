"""Check what a home keeps about its deletions: the ticket log, and the chain of certificates with its signatures."""

from typing import Any

from infra import database, signing
from registry import ownership, ticket_log, tickets
from registry.errors import CertificateError
from tasks import blobs
from tasks.certificates import verify_chain


def audit() -> dict[str, Any]:
    """Lengths and heads of both chains. Raises TamperedLogError or CertificateError naming what does not follow."""
    with database.transaction() as session:
        entries, head = ticket_log.check(session)
        logged = tickets.certificates(session)
        owners = sorted({f"ticket:{ticket_id}" for ticket_id, _ in logged})
        stored = {each.sha256: each for each in ownership.objects_of(session, owners)}
    missing = [ticket_id for ticket_id, sha256 in logged if sha256 not in stored]
    if missing:
        raise CertificateError(f"the store has no certificate of {', '.join(missing)}, which the log names")
    certificates = [blobs.read(stored[sha256].key, sha256) for _, sha256 in logged]
    issued = [signing.public_pem(signing.signing_key()), *(change["from"] for change in signing.key_changes())]
    chain = verify_chain(certificates, "".join(issued))
    newest = logged[-1][1] if logged else None
    return {"log_entries": entries, "log_digest": head, "certificates": len(chain), "newest_certificate": newest}
