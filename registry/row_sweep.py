"""Search every column of every table of a database for markers: what the sweep of the buckets is for objects."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, MetaData, Text, cast, func, select


@dataclass(frozen=True)
class RowHit:
    """How many rows of a table hold a marker in one column."""

    table: str
    column: str
    marker: int
    rows: int


def sweep_rows(connection: Connection, markers: Sequence[str]) -> list[RowHit]:
    """Look for markers inside every value, read as text. Bytes in free pages are for `infra.database.compact`."""
    metadata = MetaData()
    metadata.reflect(connection, resolve_fks=False)
    hits = []
    for table in metadata.sorted_tables:
        for column in table.columns:
            for index, marker in enumerate(markers):
                holds = cast(column, Text).contains(marker, autoescape=True)
                rows = connection.execute(select(func.count()).select_from(table).where(holds)).scalar_one()
                if rows:
                    hits.append(RowHit(table.name, column.name, index, rows))
    return hits
