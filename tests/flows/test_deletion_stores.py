"""A deleted record planted in every store of this stack: what is ours is emptied, the rest is found and named."""

import mlflow
import pytest

from infra import storage, tracking
from infra.settings import settings
from registry import artifacts
from registry.records import TicketState
from tasks import tickets as opening
from tests.flows.adversary import (
    assert_complete,
    forget,
    learned_stream,
    open_ticket,
    state_of,
)
from tests.flows.conftest import deliver

pytestmark = [pytest.mark.usefixtures("ready", "plain_steps"), pytest.mark.services]


@pytest.fixture
def planted(backbone, tmp_path):
    """The stream, the text of one of its records, and what to call to take each copy away again."""
    stream = learned_stream("stores", backbone, tmp_path, merged=False)
    text = deliver(tmp_path, "01", ["red", "blue"], rows=120)[1]["words"]  # person-1's: batches draw by name
    home, s3, clean_up = settings().home, storage.s3(), []
    for folder in ("prefect/storage", "cache/scratch", "blobs"):
        file = home / folder / "left-over"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"what a worker or a cache left: {text}")
        clean_up.append(file.unlink)
    client = tracking.prepare_tracking()
    experiment = tracking.experiment(client, stream.name)
    other = client.create_run(experiment, tags={"asked": text})
    trace = client.start_trace("an answer", inputs={"text": text}, experiment_id=experiment)
    client.end_trace(trace.trace_id, outputs={"label": "red"})
    mlflow.flush_trace_async_logging()
    where = {"Bucket": settings().artifact_bucket, "Key": "elsewhere/left-over"}
    s3.put_object(**where, Body=text.encode())
    clean_up.append(lambda: artifacts.purge_keys(s3, where["Bucket"], [where["Key"]]))
    yield stream, (other.info.run_id, trace.trace_id), clean_up
    for each in clean_up:
        each()


def test_what_no_step_may_remove_is_found_and_what_is_ours_goes(planted):
    stream, (other_run, trace), clean_up = planted
    inbox = {"Bucket": settings().inbox_bucket, "Key": f"{stream.name}/01.parquet"}
    storage.s3().create_multipart_upload(**inbox)
    ticket = open_ticket(stream, "person-1")
    forget(ticket.ticket_id)
    closed = state_of(ticket.ticket_id)
    assert closed.state == TicketState.EXCEPTION
    for store in ("home prefect", "home cache", "home blobs", f"bucket {settings().artifact_bucket}"):
        assert f"hits in {store}" in closed.note, closed.note
    assert artifacts.list_uploads(storage.s3(), inbox["Bucket"], inbox["Key"]) == []
    assert "mlflow.db" not in closed.note
    with pytest.raises(mlflow.exceptions.MlflowException, match="not found"):
        tracking.prepare_tracking().get_trace(trace)
    left = artifacts.list_versions(storage.s3(), settings().artifact_bucket, "mlflow")
    assert not any(trace in version.key for version in left)
    with pytest.raises(mlflow.exceptions.MlflowException, match="not found"):
        tracking.prepare_tracking().get_run(other_run)  # no version of ours names it: its tags went with it
    while clean_up:
        clean_up.pop()()
    opening.reopen_ticket(ticket.ticket_id, "ann", "the copies were taken away")
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
