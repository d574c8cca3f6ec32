"""What a run leaves in the Prefect UI: a Markdown page per batch, merge and ticket. Ids and figures, no subject."""

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact
from sqlalchemy.orm import Session

from infra import database, tracking
from registry import catalog, tickets, versions
from registry.records import Batch, Decision, Ticket, Verdict
from registry.stream import Stream
from registry.versions import CHAMPION, PREVIOUS
from tasks import links
from tasks.batch_page import SHOWN, Effect, batch_page
from tasks.consolidation import MergeOutcome
from tasks.pictures import show_figures
from tasks.retries import step


@step("report-{batch.name}")
def report_batch(stream: Stream, batch: Batch, decisions: Sequence[Decision], promotion: Verdict | None) -> None:
    """What came, what shifted, what was decided and why, what it did to the accuracy, and where to look."""
    with database.transaction() as session:
        refused = catalog.quarantine_counts(session, batch.batch_id)
        effect = _effect(session, stream.name, batch)
    page = batch_page(stream, batch, decisions, promotion, refused, effect)
    create_markdown_artifact(page, key=f"batch-{batch.batch_id}", description=f"{stream.name}: {batch.name}")
    if effect.version is not None:
        show_figures(stream, effect.version)


def _effect(session: Session, stream: str, batch: Batch) -> Effect:
    mine = versions.find_by_cause(session, stream, batch.node)
    champion, previous = (versions.alias_of(session, stream, alias) for alias in (CHAMPION, PREVIOUS))
    served = previous if mine is not None and champion == mine.version else champion
    after = versions.accuracies(session, stream, mine.version) if mine is not None else {}
    return Effect(
        version=mine,
        champion=champion,
        served=served,
        before=versions.accuracies(session, stream, served) if served is not None else {},
        after=after,
        names={batch_id: catalog.get_batch(session, batch_id).name for batch_id in list(after)[-SHOWN:]},
        links=[links.mlflow_version(stream, mine.version)] if mine is not None and tracking.has_server() else [],
    )


@step("report-merge-{stream.name}")
def report_merge(stream: Stream, outcome: MergeOutcome) -> None:
    answer = f"kept as {outcome.adapter_id}" if outcome.accepted else "refused"
    text = f"# {stream.name}: merge of {', '.join(outcome.parent_ids)} {answer}\n\n{outcome.reason}"
    create_markdown_artifact(text, key=f"merge-{stream.name}", description=f"merge {answer}")


@step("report-{ticket.ticket_id}")
def report_ticket(stream: Stream, ticket: Ticket) -> None:
    with database.transaction() as session:
        steps = [(row.step, row.seconds, row.finished_at) for row in tickets.steps_of(session, ticket.ticket_id)]
    lines = [
        f"# Ticket {ticket.ticket_id}: {ticket.state.value}",
        "",
        f"{ticket.records} records of stream {stream.name}.",
    ]
    lines += ["", "| step | seconds | finished |", "| --- | ---: | --- |"]
    lines += [f"| {name} | {seconds:.2f} | {at:%Y-%m-%d %H:%M:%S} |" for name, seconds, at in steps]
    create_markdown_artifact(
        "\n".join(lines), key=f"ticket-{ticket.ticket_id}", description=f"ticket {ticket.state.value}"
    )
