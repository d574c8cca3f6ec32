"""Answer for a file of inputs with the champion, as a caller with these groups."""

from typing import Any

from prefect import flow

from tasks.prediction import answer_rows, read_inputs


@flow(name="predict", flow_run_name="predict-{stream}")
def predict(stream: str, uri: str, groups: list[str]) -> list[dict[str, Any]]:
    """A label, a score and the adapter used, per row; nothing of a group that the caller does not hold takes part."""
    rows = read_inputs(stream, uri)
    return answer_rows(stream, rows, groups)
