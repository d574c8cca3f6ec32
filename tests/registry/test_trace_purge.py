"""MLflow traces of answers to a deleted record."""

import mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from infra import storage, tracking
from infra.settings import settings
from registry import artifacts, model_purge, row_sweep


def test_traces_that_hold_a_record_go_with_their_files_and_no_other(mlflow_client, tmp_path):
    experiment, s3, bucket = tracking.experiment(mlflow_client, "traced"), storage.s3(), settings().artifact_bucket
    text = 'a "quoted" naïve record that somebody asked about'
    traces = []
    for asked in (text, "another question, by somebody who stays"):
        trace = mlflow_client.start_trace("an answer", inputs={"text": asked}, experiment_id=experiment)
        mlflow_client.end_trace(trace.trace_id, outputs={"label": "red"})
        traces.append(trace.trace_id)
    mlflow.flush_trace_async_logging()
    for trace_id in traces:  # a file as MLflow writes it where its store takes no spans
        (tmp_path / "traces.json").write_text("{}")
        location = mlflow_client.get_trace(trace_id).info.tags[model_purge.TRACE_LOCATION]
        get_artifact_repository(location).log_artifact(str(tmp_path / "traces.json"))
    kept = [v.key for v in artifacts.list_versions(s3, bucket, "") if traces[0] in v.key or traces[1] in v.key]
    assert all(any(trace_id in key for key in kept) for trace_id in traces)
    with tracking.backend() as connection:
        purged = model_purge.purge_traces(connection, s3, bucket, experiment, [text])
        assert purged.rows["trace_info"] == 1
        assert row_sweep.sweep_rows(connection, ["record that somebody asked about"]) == []
        assert row_sweep.sweep_rows(connection, ["another question, by somebody"]) != []
    left = [v.key for v in artifacts.list_versions(s3, bucket, "") if traces[0] in v.key or traces[1] in v.key]
    assert left == [key for key in kept if traces[1] in key]
