"""A note in S3 of every ticket that took effect: what a restored catalog would otherwise not know.

It holds keyed hashes, as the suppression list does, and outlives every backup that is older than the ticket."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from infra import storage
from infra.settings import settings
from registry import artifacts
from registry.canonical import canonical_json
from registry.records import Ticket, TicketState

PREFIX = "tickets/"
Journaled = tuple[Ticket, list[tuple[str, str]]]


def note(ticket: Ticket, targets: Sequence[tuple[str, str]]) -> None:
    """Write the note before the ticket's transaction commits; one that is there is replaced by the same."""
    content = canonical_json({"ticket": _plain(ticket), "targets": sorted(targets)})
    key = f"{PREFIX}{ticket.stream}/{ticket.ticket_id}.json"
    s3, bucket = storage.s3(), settings().artifact_bucket
    with artifacts.named(s3, bucket, key):
        s3.put_object(Bucket=bucket, Key=key, Body=content)


def noted(stream: str) -> list[Journaled]:
    """Every ticket of the stream that ever took effect, oldest first."""
    s3, bucket = storage.s3(), settings().artifact_bucket
    listed = artifacts.list_current(s3, bucket, f"{PREFIX}{stream}/")
    found = [_native(json.loads(artifacts.get_version(s3, bucket, version))) for version in listed]
    return sorted(found, key=lambda each: (each[0].received_at, each[0].ticket_id))


def _plain(ticket: Ticket) -> dict[str, Any]:
    moments = {"received_at": ticket.received_at.isoformat(), "due_at": ticket.due_at.isoformat()}
    return {**asdict(ticket), **moments}


def _native(content: dict[str, Any]) -> Journaled:
    fields = content["ticket"]
    moments = {name: datetime.fromisoformat(fields[name]) for name in ("received_at", "due_at")}
    state = TicketState(fields["state"])
    return Ticket(**{**fields, **moments, "state": state}), [(kind, keyed) for kind, keyed in content["targets"]]
