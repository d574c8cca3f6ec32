"""Read inputs to answer for, and answer them with the champion."""

from typing import Any

from infra import database
from registry import catalog
from registry.errors import SourceError
from tasks import source
from tasks.narration import say
from tasks.promotion import champion_manifest
from tasks.reading import read_table
from tasks.retries import step
from tasks.serving import Answerer

CHUNK = 512


@step("read-inputs-{stream}")
def read_inputs(stream: str, uri: str) -> list[dict[str, Any]]:
    """Rows with the stream's input column, and its id column where the file has one."""
    with database.transaction() as session:
        columns = catalog.get_stream(session, stream).columns
    _, data = source.fetch(uri, "")
    table = read_table(data, uri)
    if columns.input not in table.column_names:
        raise SourceError(f"{uri} has no column {columns.input!r}; it has {', '.join(table.column_names)}")
    kept = [name for name in (columns.id, columns.input) if name in table.column_names]
    rows: list[dict[str, Any]] = table.select(kept).to_pylist()
    empty = [number for number, row in enumerate(rows) if not row[columns.input]]
    if empty:
        raise SourceError(f"{uri} has no input in {len(empty)} rows, first in row {empty[0]}; remove or fill them")
    return rows


@step("answer-{stream}")
def answer_rows(stream: str, rows: list[dict[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    version, manifest = champion_manifest(stream)
    answerer = Answerer(manifest)
    columns, answers = answerer.stream.columns, []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        raw = [row[columns.input] for row in chunk]
        found = answerer.answer([i if isinstance(i, bytes) else str(i).encode() for i in raw], groups)
        best = found.scores_NC.max(1).values.tolist()
        for number, row in enumerate(chunk):
            answers.append(
                {
                    "row": row.get(columns.id, start + number),
                    "label": found.labels[number],
                    "score": round(best[number], 4),
                    "adapter": found.adapter_ids[number],
                    "version": version,
                }
            )
    say(f"{stream}: {len(rows)} rows answered by version {version}")
    return answers
