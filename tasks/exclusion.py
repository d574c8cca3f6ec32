"""Learning, merging and forgetting a stream do not overlap, in whatever process they run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from secrets import token_hex

from sqlalchemy.orm import Session

from infra import database
from infra.errors import HeldError
from infra.locks import exclusive
from registry import catalog

PATIENCE_SECONDS = 6 * 3600.0
"""What one of them waits for another: a batch that trains on a CPU takes hours."""

DEPLOY_SECONDS = 120.0
"""What one deploy waits for another: each takes seconds."""

_taken: dict[str, str] = {}
"""Stream -> the name under which this process took it."""


@contextmanager
def alone(stream: str, wait_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold the stream while the block runs. Tells who is waited for; raises HeldError, which names the holder, after
    `wait_seconds`, and SchemaError where the catalog does not fit this code."""
    database.check_revision()
    name = f"stream {stream}"
    with ExitStack() as held:
        try:
            held.enter_context(exclusive(name))
        except HeldError as error:
            if wait_seconds == 0:
                raise
            from tasks.narration import say  # noqa: PLC0415  Prefect takes seconds, a rollback waits for nobody

            say(f"{name} is being worked on by {error.holder}: waiting for it")
            held.enter_context(exclusive(name, wait_seconds))
        holder = f"{database.process_name()} ({token_hex(4)})"
        with database.transaction() as session:
            catalog.take_stream(session, stream, holder)
        _taken[stream] = holder
        held.callback(_taken.pop, stream)
        yield


def still_alone(session: Session, stream: str) -> None:
    """Raise OvertakenError where this process took the stream and another has taken it since: PostgreSQL's lock falls
    with its connection, and who trains for hours does not ask for it. Nobody takes it before this transaction ends."""
    if (holder := _taken.get(stream)) is not None:
        catalog.require_holder(session, stream, holder)


@contextmanager
def taking_in(stream: str) -> Iterator[None]:
    """Hold the stream's ledger while one object is looked up, read and entered: two workers never take the same."""
    with exclusive(f"ledger {stream}", PATIENCE_SECONDS):
        yield


@contextmanager
def naming(stream: str) -> Iterator[None]:
    """Hold what is written and not named yet: by who writes without holding the stream, and by who removes such."""
    with exclusive(f"names {stream}", PATIENCE_SECONDS):
        yield


@contextmanager
def deploying() -> Iterator[None]:
    """Hold what is deployed: two that look for a pool or an automation at once would both make it."""
    with exclusive("deployments", DEPLOY_SECONDS):
        yield
