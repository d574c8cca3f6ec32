"""What a run leaves in the Prefect UI: a Markdown page per batch, merge and ticket. Ids and figures, no subject."""

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact

from infra import database
from registry import catalog, tickets, versions
from registry.records import Batch, Decision, Ticket, Verdict
from registry.stream import Stream
from registry.versions import CHAMPION
from tasks import links
from tasks.consolidation import MergeOutcome
from tasks.pictures import show_figures
from tasks.retries import step


@step("report-{batch.name}")
def report_batch(stream: Stream, batch: Batch, decisions: Sequence[Decision], promotion: Verdict | None) -> None:
    """What came, what shifted, what was decided and why, what it did to the accuracy, and where to look."""
    with database.transaction() as session:
        reasons = catalog.quarantine_counts(session, batch.batch_id)
        champion = versions.alias_of(session, stream.name, CHAMPION)
        mine = versions.find_by_cause(session, stream.name, batch.node)
        names = {b.batch_id: b.name for b in catalog.batches(session, stream.name)}
        after = versions.accuracies(session, stream.name, mine.version) if mine else {}
        earlier = [v.version for v in versions.versions(session, stream.name) if mine and v.version < mine.version]
        before = versions.accuracies(session, stream.name, earlier[-1]) if earlier else {}
    lines = [
        f"# {stream.name}: {batch.name}",
        "",
        f"{batch.rows} rows, {batch.quarantined} quarantined, {batch.suppressed} suppressed.",
    ]
    lines += [f"- {count} × {reason}" for reason, count in sorted(reasons.items())]
    for shard, decision in zip(batch.shards, decisions, strict=True):
        lines += ["", f"## {decision.kind.value} (group {shard.group})", "", decision.reason, "", *_scores(decision)]
    verdict = promotion.reason if promotion else "the model stays as it is"
    lines += ["", f"**Champion:** version {champion and links.mlflow_version(stream.name, champion)}. {verdict}", ""]
    if after:
        lines += ["| batch | accuracy before | accuracy after | exact head | held-out rows |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        lines += [f"| {names[b]} | {_figure(before, b)} | {a:.3f} | {e:.3f} | {n} |" for b, (a, e, n) in after.items()]
    lines += ["", f"`deciduous describe {batch.batch_id}` tells all of it."]
    create_markdown_artifact(
        "\n".join(lines), key=f"batch-{batch.batch_id}", description=f"{stream.name}: {batch.name}"
    )
    if mine is not None:
        show_figures(stream, mine)


def _figure(cells: dict[str, tuple[float, float, int]], batch_id: str) -> str:
    return f"{cells[batch_id][0]:.3f}" if batch_id in cells else ""


def _scores(decision: Decision) -> list[str]:
    """z-scores as a table, a row per layer."""
    known = sorted({adapter for row in decision.z_scores.values() for adapter in row})
    if not known:
        return ["No adapter to compare with."]
    lines = [f"| layer | {' | '.join(known)} |", f"| --- |{' ---: |' * len(known)}"]
    return lines + [
        f"| {layer} | {' | '.join(f'{row[a]:.2f}' if a in row else '' for a in known)} |"
        for layer, row in decision.z_scores.items()
    ]


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
