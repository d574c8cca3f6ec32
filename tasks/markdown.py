"""Rows of Markdown tables, whatever the names in them hold."""

from collections.abc import Iterable


def table_row(cells: Iterable[object]) -> str:
    """Batches and groups are called as their owners like: a bar or a line's end would begin another cell or row."""
    return f"| {' | '.join(one_line(cell).replace('|', BAR) for cell in cells)} |"


def one_line(text: object) -> str:
    return " ".join(str(text).splitlines())


BAR = r"\|"
