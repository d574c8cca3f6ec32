"""Each test says which fault it made, what was tried, how it ended, what was lost; FAULTS names the page to write."""

import os
from pathlib import Path

import pytest

from tests.infra.postgres import find_binaries

HEAD = """# What breaks, and what is lost

Written by `make test-faults`; each line is a test of `tests/faults` that passed. A fault ends in a retry that succeeds,
or in one error that says what, which and what to do; nothing is half-visible. "Retryable": the test asks the rule by
which a step is repeated after 1, 5 and 25 seconds (`tasks/retries.py`); it does not wait for that. "Data lost": what
was read back. `CRASHES=all make test-faults` kills before every effect of every scenario instead of a sample (over an
hour); `CRASH_SEED=1` (2, ...) takes another sample. The page is written only where PostgreSQL's binaries are, from all
tests.

| fault | tried | outcome | data lost |
| --- | --- | --- | --- |
"""
_lines: list[str] = []


@pytest.fixture
def ends(request):
    """Call it last, with what was seen."""
    told: list[str] = []

    def tell(fault: str, tried: str, outcome: str, lost: str) -> None:
        told.append(f"| {fault} | {tried} | {outcome} | {lost} |")

    yield tell
    if told and not request.session.testsfailed:
        _lines.extend(told)


def pytest_sessionfinish(session: pytest.Session) -> None:
    page = os.environ.get("FAULTS")
    if page and find_binaries() is None:
        print(f"\n{page} is not written: its rows of PostgreSQL need initdb and pg_ctl")
    elif page and _lines and not session.testsfailed:
        Path(page).write_text(HEAD + "\n".join(_lines) + "\n", encoding="utf-8")
