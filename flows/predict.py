"""Answer for inputs with the champion, as a caller with these groups."""

from typing import Any

from prefect import flow
from pydantic import SecretStr

from registry.errors import SourceError
from tasks.prediction import answer_rows, list_unanswered, open_job, read_inputs, write_answers


@flow(name="predict", flow_run_name="predict-{stream}", persist_result=False)
def predict(
    stream: str, uri: str, groups: list[str], out: str | None = None, caller: SecretStr | None = None
) -> list[dict[str, Any]]:
    """A label, a score and the adapters used, per row; nothing of a group that the caller does not hold takes part.

    With `out`, the answers are written as one Parquet file. Prefect is not told who the caller is, except by a
    deployment: there it is a name.
    """
    job = open_job(stream, groups, caller)
    answers = answer_rows(job, read_inputs(stream, uri, out))
    if out is not None:
        write_answers(job, answers, out)
    return answers


@flow(name="predict-batch", flow_run_name="predict-batch-{stream}", persist_result=False)
def predict_batch(stream: str, uri: str, out: str, groups: list[str], caller: SecretStr | None = None) -> list[str]:
    """Answer every object of a source into Parquet files under `out`; what was answered before is not answered again.

    For schedules: a killed run is continued by the next, and all answers of one run come from one version. An object
    that cannot be answered fails alone: the others are answered, then a SourceError names the refused ones.
    """
    job = open_job(stream, groups, caller)
    written: list[str] = []
    refused: list[str] = []
    for found, answers in list_unanswered(job, uri, out):
        try:
            rows = read_inputs(stream, found)
        except SourceError as error:
            refused.append(str(error))
        else:
            written.append(write_answers(job, answer_rows(job, rows), answers))
    if refused:
        raise SourceError(f"{len(refused)} object(s) to answer for {stream!r} were refused:\n" + "\n".join(refused))
    return written
