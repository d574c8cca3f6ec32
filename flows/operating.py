"""Verbs for a stream on a Prefect server: deploy, undeploy, worker. `flows.cli` adds them to its own."""

# ruff: noqa: PLC0415  imports are late, as in flows.cli

import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows import console
from flows.console import DryRun, Json, StreamName, acting


def deploy(
    file: Annotated[Path, typer.Argument(help="Stream file.")],
    pool_type: Annotated[
        Literal["process", "docker", "kubernetes"], typer.Option(help="What new work pools start.")
    ] = "process",
    export: Annotated[
        Path | None, typer.Option(help="Write a prefect.yaml instead, for `prefect deploy --all`.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Create or update schedules, triggers and work pools on the Prefect server. Example: deciduous deploy mail.yaml"""
    from infra.workers import PoolType
    from registry.stream import load_stream

    stream = load_stream(file)
    with acting(quiet=True, server=export is None) as actions:
        from flows import deployments

        if export is not None:
            deployments.export(stream, export, dry_run)
            wrote = "would write" if dry_run else "wrote"
            console.console.print(f"{wrote} {export}; then: prefect deploy --all --prefect-file {export}")
        else:
            _show(actions.deploy(stream, PoolType(pool_type), dry_run), json)


def undeploy(stream: StreamName, dry_run: DryRun = False, json: Json = False) -> None:
    """Remove a stream's deployments and automations; runs, pools and models stay. Example: deciduous undeploy mail"""
    with acting(quiet=True, server=True) as actions:
        _show(actions.undeploy(stream, dry_run), json)


def worker(
    pool: Annotated[str, typer.Argument(help="Work pool: cpu, or gpu for training.")] = "cpu",
    limit: Annotated[int | None, typer.Option(min=1, help="Runs at once; default as the pool says.")] = None,
) -> None:
    """Run Prefect's worker for a pool, in the foreground, over this home. Example: deciduous worker gpu"""
    from infra.workers import worker_command, worker_environment

    with acting(quiet=True, server=True):
        from tasks import opening

        _require_pool(pool)
        opening.open_home()
    command = worker_command(pool, limit)
    os.execve(command[0], command, worker_environment())


def _require_pool(pool: str) -> None:
    """Prefect's worker would make a pool of the name, and wait there for runs that nobody sends."""
    from infra.orchestration import pool_names
    from infra.workers import CPU, GPU
    from registry.errors import StateError

    known = {CPU, GPU, *pool_names(os.environ["PREFECT_API_URL"])}  # ours may be served before they are asked for
    if pool not in known:
        raise StateError(
            f"no work pool {pool!r} on the Prefect server; known: {', '.join(sorted(known))}; `deciduous deploy` makes "
            "the pool that a stream file names (tasks.pool)"
        )


def watch() -> None:
    """Tell Prefect of new tickets and of aliases moved in MLflow, in the foreground. Example: deciduous watch"""
    from threading import Event

    with acting(server=True), suppress(KeyboardInterrupt):
        from tasks import opening, watching

        opening.open_home()
        watching.watch(Event())


def approve(
    request: Annotated[str, typer.Argument(help="What `deciduous requests` lists, for example promotion:mail/4.")],
    by: Annotated[str, typer.Option(help="Your name; it is recorded.")],
    refuse: Annotated[bool, typer.Option("--refuse", help="Do not let it pass.")] = False,
    note: Annotated[str, typer.Option(help="Why; it is recorded.")] = "",
) -> None:
    """Answer a gate that asks a person; carried out at once. Example: deciduous approve promotion:mail/4 --by Ann"""
    with acting() as actions:
        console.console.print(actions.answer(request, not refuse, by, note))


def requests(
    stream: Annotated[str | None, typer.Argument(help="One stream; default all.")] = None, json: Json = False
) -> None:
    """What waits for a person's word. Example: deciduous requests mail"""
    with acting(quiet=True) as actions:
        rows = [asdict(request) for request in actions.waiting_requests(stream)]
    console.show_json(rows) if json else console.show_rows("requests", rows)


def _show(changes: list[Any], json: bool) -> None:
    rows = [asdict(change) for change in changes]
    console.show_json(rows) if json else console.show_rows("changes", rows)


VERBS = (deploy, undeploy, worker, watch, approve, requests)
