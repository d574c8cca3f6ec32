"""Every row of a database as lines of JSON, and back: the same file fits SQLite and PostgreSQL.

The caller gives the connection and commits. Tables are read from the database itself, so that MLflow's go the same
way as ours."""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from itertools import groupby, islice
from typing import Any

from sqlalchemy import Connection, LargeBinary, MetaData, Table, insert, select, text

from registry.errors import StateError

REVISION = "alembic_version"
CHUNK = 500


def dump_rows(connection: Connection) -> Iterator[str]:
    """A line per row: [table, {column: value}]. The first names the revision of the tables."""
    for table in _tables(connection):
        rows = select(table).execution_options(yield_per=CHUNK)  # PostgreSQL's driver would fetch the whole table
        with connection.execute(rows) as found:
            for row in found.mappings():
                yield json.dumps([table.name, {name: _plain(value) for name, value in row.items()}], ensure_ascii=False)


def load_rows(connection: Connection, lines: Iterable[str]) -> int:
    """Replace every row of the database by those of a dump; returns how many there are now.

    Raises StateError where the tables are of another revision than the dump's."""
    revision, *ordered = _tables(connection)
    rows = map(json.loads, lines)
    first = next(rows, [None, None])
    known = [dict(row) for row in connection.execute(select(revision)).mappings()]
    if revision.name != REVISION or first[0] != REVISION or [first[1]] != known:
        raise StateError(f"the dump begins with {first}, the tables are of revision {known}; bring them there first")
    for table in reversed(ordered):
        connection.execute(table.delete())
    named, count = {table.name: table for table in ordered}, 0
    for name, group in groupby(rows, key=lambda row: row[0]):
        while values := [_native(named[name], value) for _, value in islice(group, CHUNK)]:
            connection.execute(insert(named[name]), values)
            count += len(values)
        _continue_counting(connection, named[name])
    return count


def _tables(connection: Connection) -> list[Table]:
    """Tables in the order in which their rows can be inserted, the one with the revision first."""
    metadata = MetaData()
    metadata.reflect(connection)
    return sorted(metadata.sorted_tables, key=lambda table: table.name != REVISION)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    return b64encode(value).decode() if isinstance(value, bytes) else value


def _native(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    return {name: _of_type(table.c[name].type, value) for name, value in row.items()}


def _of_type(kind: Any, value: Any) -> Any:
    if isinstance(value, str) and isinstance(kind, LargeBinary):
        return b64decode(value)
    if isinstance(value, str) and kind.python_type is datetime:
        return datetime.fromisoformat(value).astimezone(UTC)
    return date.fromisoformat(value) if isinstance(value, str) and kind.python_type is date else value


def _continue_counting(connection: Connection, table: Table) -> None:
    """PostgreSQL counts on from what was inserted by hand; SQLite does so of itself."""
    if connection.dialect.name != "postgresql":
        return
    for column in table.primary_key:
        quoted = connection.dialect.identifier_preparer.format_table(table)
        where = {"table": quoted, "column": column.name}
        sequence = connection.execute(text("select pg_get_serial_sequence(:table, :column)"), where).scalar()
        if sequence is not None:
            newest = f'select setval(:sequence, max("{column.name}")) from {quoted}'
            connection.execute(text(newest), {"sequence": sequence})
