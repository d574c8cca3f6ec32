"""Verbs of the one who overrules a decision: which version serves, which adapters do, what becomes of a held batch."""

# ruff: noqa: PLC0415  imports are late, as in flows.cli

from typing import Annotated, Any

import typer

from flows import console
from flows.console import DryRun, Json, StreamName, acting

Reason = Annotated[str, typer.Option(help="Why; kept in the alias history.")]


def promote(stream: StreamName, version: int, reason: Reason = "by hand", dry_run: DryRun = False) -> None:
    """Make a version champion; the release gate is asked. Example: deciduous promote mail 4 --reason 'reviewed'"""
    moves = _alias_moves()
    moves.check_move(stream, version) if dry_run else moves.move_champion(stream, version, reason)
    console.console.print(f"{'would move' if dry_run else 'moved'} champion of {stream} to version {version}")


def rollback(
    stream: StreamName,
    to: Annotated[int | None, typer.Option(help="Version; default the champion before this one.")] = None,
    reason: Reason = "rolled back by hand",
    dry_run: DryRun = False,
) -> None:
    """Move the champion back. Example: deciduous rollback mail"""
    moves = _alias_moves()
    target = moves.rollback_target(stream, to)
    if dry_run:
        moves.check_move(stream, target)
        console.console.print(f"would move champion of {stream} to version {target}")
    else:
        moves.move_champion(stream, target, reason)
        console.console.print(f"champion of {stream} is version {target} again")


def merge(
    stream: StreamName,
    adapters: Annotated[list[str] | None, typer.Argument(help="Two adapters; default the closest pair.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Merge two adapters behind the accuracy gate. Example: deciduous merge mail mail-a2 mail-a3"""
    with acting(quiet=json) as actions:
        result = actions.merge(stream, adapters or [], dry_run)
    console.show_json(result) if json else console.show_record(result)


def retire(adapter: Annotated[str, typer.Argument()], reason: Reason = "by hand", dry_run: DryRun = False) -> None:
    """Stop serving an adapter; `reinstate` undoes it. Example: deciduous retire mail-a2 --reason 'season is over'"""
    with acting() as actions:
        console.console.print(actions.retire(adapter, reason, dry_run))


def reinstate(adapter: Annotated[str, typer.Argument()], reason: Reason = "by hand", dry_run: DryRun = False) -> None:
    """Judge a retired adapter again. Example: deciduous reinstate mail-a2 --reason 'the season begins'"""
    with acting() as actions:
        console.console.print(actions.reinstate(adapter, reason, dry_run))


def rejudge(batch: Annotated[str, typer.Argument(help="Id or name of a held batch.")]) -> None:
    """Let the next run decide on a held batch again. Example: deciduous rejudge 2026-11"""
    with acting() as actions:
        console.console.print(actions.rejudge(batch))


def discard(batch: Annotated[str, typer.Argument(help="Id or name of a held batch.")]) -> None:
    """Forget a held batch, so that its records may come again. Example: deciduous discard 3f1c92ab77d0"""
    with acting() as actions:
        console.console.print(actions.discard(batch))


def _alias_moves() -> Any:
    """What moves an alias, on a catalog of the newest revision. Not by `acting`: Prefect and torch take longer."""
    from infra import database
    from tasks import alias_moves

    database.migrate()
    return alias_moves


VERBS = (promote, rollback, merge, retire, reinstate, rejudge, discard)
