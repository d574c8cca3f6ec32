"""What people see in a terminal: the runs' own log lines as they happen, tables, and errors with their remedy."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
# a table in a file or a pipe is as wide as its cells: an id is not cut
tables = console if sys.stdout.isatty() else Console(highlight=False, width=10_000)
LONG = {"certificate_key", "lead"}
"""Left to `describe` and to JSON: a table would have no room for the rest."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")]
StreamName = Annotated[str, typer.Argument(help="Name of a stream, as `deciduous status` lists it.")]

_COLOURS = {"+": "green", "=": "cyan", "~": "yellow", "?": "magenta"}
_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "deciduous")


class _Narrator(logging.Handler):
    """Prints what the steps say; progress lines replace each other in the spinner."""

    def __init__(self, status: Status, said: str, progress: str) -> None:
        super().__init__(logging.INFO)
        self.status, self.said, self.progress = status, said, progress

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, self.progress):
            self.status.update(escape(record.getMessage()))
        elif hasattr(record, self.said):
            console.print(_coloured(record.getMessage()))


def _coloured(line: str) -> str:
    mark = line.strip()[:1]
    return f"[{_COLOURS[mark]}]{escape(line)}[/]" if line.startswith("  ") and mark in _COLOURS else escape(line)


@contextmanager
def narrated(quiet: bool = False) -> Iterator[None]:
    """Show the steps' log lines while the block runs; `quiet` for machine-readable output."""

    from prefect.logging.configuration import setup_logging  # noqa: PLC0415

    from infra.settings import settings  # noqa: PLC0415
    from tasks.narration import PROGRESS, SAID  # noqa: PLC0415

    quiet = quiet or settings().log_format == "json"  # then Prefect's console handler writes every line
    setup_logging()  # the first flow would do it, and take our handler away
    warnings.filterwarnings("ignore", module="mlflow")
    status = Status("starting", console=errors if quiet else console)
    handler = _Narrator(status, SAID, PROGRESS)
    loggers = [logging.getLogger(name) for name in _RUN_LOGGERS]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        if not quiet:
            logger.addHandler(handler)
    try:
        if quiet:
            yield
        else:
            with status:
                yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@contextmanager
def acting(quiet: bool = False, server: bool = False) -> Iterator[ModuleType]:
    """The actions, with Prefect told about this home before it is imported, and their log lines shown.

    `server`: the verb makes sense on a server that goes on running only. Raises StateError where there is none, and
    UnreachableError where Prefect's does not answer."""
    from infra.orchestration import answering, open_api, prepare_prefect, without_heartbeat  # noqa: PLC0415
    from infra.settings import settings  # noqa: PLC0415
    from registry.errors import StateError  # noqa: PLC0415

    # Prefect's tracebacks stay in the run's log: here an error ends as one message
    if settings().log_format == "text":
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    prepare_prefect()
    if server and not os.environ.get("PREFECT_API_URL"):
        raise StateError("no Prefect server: start one with `deciduous up`, or name yours in PREFECT_API_URL")
    with narrated(quiet=quiet), answering(), without_heartbeat():
        if server:
            open_api()
        from flows import actions  # noqa: PLC0415

        yield actions


def show_error(error: Exception) -> None:
    errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=not errors.is_terminal)


def show_json(content: Any) -> None:
    print(json.dumps(content, default=_plain, indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def show_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a column per key of the first row; cells fold, so that every id can be read to its end."""
    if not rows:
        console.print(f"no {title}")
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in (name for name in rows[0] if name not in LONG):
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*[escape(_cell(value)) for name, value in row.items() if name not in LONG])
    tables.print(table)


def show_records(title: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Several things one below the other, where a row each would be too wide."""
    if not records:
        console.print(f"no {title}")
    for number, record in enumerate(records):
        console.print() if number else None
        show_record(record)


def show_record(record: Mapping[str, Any]) -> None:
    """One thing, a line per field."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in record.items():
        table.add_row(name.replace("_", " "), escape(_cell(value)))
    tables.print(table)


def show_findings(findings: Sequence[Mapping[str, Any]]) -> None:
    """A line each, with its remedy below where there is one."""
    marks = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "error": "[red]error[/]  "}
    for finding in findings:
        console.print(f"{marks[finding['health']]}  {finding['part']:8}  {escape(finding['found'])}", soft_wrap=True)
        if finding["remedy"]:
            console.print(f"{' ' * 19}[dim]-> {escape(finding['remedy'])}[/]", soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, Mapping):
        return _mapping_cell(value)
    if isinstance(value, list | tuple):
        return ("\n" if any(isinstance(v, Mapping) for v in value) else ", ").join(map(_cell, value)) or "-"
    return str(value)


def _mapping_cell(value: Mapping[str, Any]) -> str:
    if value and all(isinstance(each, int) for each in value.values()):
        return ", ".join(f"{count} {name}" for name, count in value.items() if count) or "-"
    return "\n".join(f"{name}: {_cell(each)}" for name, each in value.items()) or "-"
