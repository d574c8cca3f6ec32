"""What happens outside Prefect becomes Prefect's events: tickets in the catalog, aliases that people move in MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from mlflow.entities.webhook import WebhookEvent

from infra import database, tracking, webhooks
from infra.errors import InfraError
from infra.orchestration import answering
from infra.settings import settings
from registry import catalog, versions
from registry.errors import PipelineError, StateError
from registry.versions import CHAMPION
from tasks.alias_moves import mirror_aliases, move_alias
from tasks.events import ALIAS_MOVED, GATE_REFUSED, TICKET_OPENED, announce, announce_ticket
from tasks.missed import start_missed
from tasks.narration import say
from tasks.tickets import startable

LOOK_SECONDS = 0.5
SWEEP_SECONDS = 60.0
WEBHOOK = "deciduous"
EVENTS = [
    WebhookEvent("model_version_alias", "created"),
    WebhookEvent("model_version_alias", "deleted"),
    WebhookEvent("model_version", "created"),
]


def watch(stop: Event) -> None:
    """Look at the catalog until `stop` is set; a server that does not answer is asked again at the next look."""
    announced: set[str] = set()
    swept = monotonic()
    with _receiving():
        while not stop.wait(LOOK_SECONDS):
            with going_on():
                announced |= announce_new(announced)
            if monotonic() - swept > SWEEP_SECONDS:
                swept = monotonic()
                with going_on():
                    sweep_streams()


@contextmanager
def going_on() -> Iterator[None]:
    """Say what does not answer or is refused; the next look asks again."""
    try:
        with answering():
            yield
    except (InfraError, PipelineError, OSError) as error:
        say(f"cannot look just now: {error}")


def announce_new(announced: set[str]) -> set[str]:
    """Tell Prefect of every open ticket that this process has not told of; the automation starts a ticket once."""
    waiting = startable(known=announced)
    for ticket in waiting:
        announce_ticket(TICKET_OPENED, ticket)
        say(f"ticket {ticket.ticket_id} of stream {ticket.stream} is announced")
    return {ticket.ticket_id for ticket in waiting}


def sweep_streams() -> None:
    """For every stream what each run of `learn` does first: start what was missed. None of them keeps another back."""
    with database.transaction() as session:
        streams = catalog.stream_names(session)
    for stream in streams:
        with going_on():
            start_missed.fn(stream)


def receive(delivery: dict[str, Any]) -> None:
    """Put what MLflow tells into Prefect's feed, and take over a champion that a person has moved there."""
    data = delivery.get("data", {})
    model, event = str(data.get("name", "")), f"mlflow.{delivery.get('entity')}.{delivery.get('action')}"
    fields = {name: str(data[name]) for name in ("alias", "version") if name in data}
    announce(event, model, "model", model, **fields)
    if event == "mlflow.model_version_alias.created" and fields.get("alias") == CHAMPION:
        adopt_champion(model, int(fields["version"]))


def adopt_champion(stream: str, version: int) -> None:
    """A person moved the alias in MLflow: the catalog follows through the release gate, or MLflow is put back."""
    with database.transaction() as session:
        if stream not in catalog.stream_names(session) or versions.alias_of(session, stream, CHAMPION) == version:
            return  # not ours, or our own move
    try:
        move_alias(stream, CHAMPION, version, "a person, in MLflow", "the alias was moved in MLflow")
        announce(ALIAS_MOVED, stream, "alias", f"{stream}.{CHAMPION}", alias=CHAMPION, version=version)
    except PipelineError as error:
        mirror_aliases(stream)
        announce(
            GATE_REFUSED, stream, "gate", f"release.{stream}.{version}", gate="release", what=f"{stream}/{version}",
            reason=str(error),
        )  # fmt: skip


@contextmanager
def _receiving() -> Iterator[None]:
    """Listen where DECIDUOUS_WEBHOOK_URL says, and register that address in MLflow; nothing where it is not set."""
    url, secret = settings().webhook_url, settings().webhook_secret
    if url is None:
        yield
        return
    if secret is None:
        raise StateError("DECIDUOUS_WEBHOOK_URL is set without DECIDUOUS_WEBHOOK_SECRET: webhooks must be signed")
    place = urlsplit(url)
    host = place.hostname if place.hostname in ("127.0.0.1", "localhost") else ""
    with webhooks.listening((host or "0.0.0.0", place.port or 80), secret.get_secret_value(), receive):
        register_webhook(url, secret.get_secret_value())
        yield


def register_webhook(url: str, secret: str) -> None:
    """One webhook of ours in MLflow, with this address and secret."""
    client = tracking.prepare_tracking()
    for known in client.list_webhooks():
        if known.name == WEBHOOK:
            client.delete_webhook(known.webhook_id)
    client.create_webhook(WEBHOOK, url, [*EVENTS], secret=secret)
