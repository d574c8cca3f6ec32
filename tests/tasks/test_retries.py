"""A step runs every time it is called."""

import pytest
from prefect import flow

from tasks.retries import step

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_a_step_is_never_answered_from_a_cache_also_where_results_are_kept():
    """A kept result could outlive a deletion, and bring back what a ticket removed."""
    ran = []

    @step("count")
    def count(number: int) -> int:
        ran.append(number)
        return number

    keeping = count.with_options(persist_result=True)

    @flow
    def twice() -> None:
        keeping(1)
        keeping(1)

    twice()
    twice()
    assert ran == [1, 1, 1, 1]
