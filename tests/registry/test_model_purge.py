"""MLflow's own deletes leave rows and bytes behind; ours leave nothing, and spare the neighbours."""

import subprocess
import sys
import uuid
import warnings

import mlflow
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag

from infra import database, tracking
from infra.disk_sweep import sweep_files
from infra.settings import settings
from registry import aliases, models
from registry.artifacts import list_versions, sweep_bytes
from registry.errors import PurgeError, StateError, UnknownIdError
from registry.model_purge import delete_version_for_real, purge_run
from registry.row_sweep import sweep_rows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of type hints of its own
    from mlflow.pyfunc import PythonModel

BUCKET = "deciduous"


class Echo(PythonModel):
    def predict(self, context, model_input: list[str]) -> list[str]:  # noqa: ARG002
        return model_input


@pytest.fixture
def marker(mlflow_client):
    """A word that every trace of the test's run and version carries."""
    assert mlflow_client is not None
    return f"sUbJeCt-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def run_id(mlflow_client, marker, tmp_path):
    """A run with a file, a figure, a data set and a logged model of MLflow 3, registered as version 1 and 2."""
    (tmp_path / "manifest.json").write_text(marker)
    experiment = tracking.experiment(mlflow_client, "purge")
    run_id = models.log_run(
        mlflow_client,
        experiment,
        marker,
        params={"p": marker},
        metrics={f"accuracy-{marker}": 0.5},
        tags={"t": marker},
        model_folder=tmp_path,
    )
    dataset = Dataset(marker, "digest", "s3", f"s3://inbox/{marker}", profile=marker)
    mlflow_client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("of", marker)])])
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(name=marker, python_model=Echo(), pip_requirements=[], params={"p": marker})
        mlflow.log_metric("logged", 1.0, model_id=logged.model_id)
    for source in (models.model_source(run_id), logged.model_uri):
        version = models.register_version(mlflow_client, marker, run_id, source, {"t": marker}, marker)
        aliases.set_alias(mlflow_client, marker, f"alias-{version}", version)
    return run_id


def rows_with(*markers):
    with tracking.backend() as connection:
        return {hit.table for hit in sweep_rows(connection, markers)}


def in_file(*markers):
    tracking.compact()
    return sweep_files(settings().home.glob("mlflow.db*"), [marker.encode() for marker in markers]) != []


def purge_all(mlflow_client, s3, marker, run_id):
    """All of the run and its versions; the model's own row is MLflow's to delete, with the number that stays taken."""
    with tracking.backend() as connection:
        parts = [delete_version_for_real(connection, s3, BUCKET, marker, version) for version in (1, 2)]
        parts.append(purge_run(connection, s3, BUCKET, run_id))
    mlflow_client.delete_registered_model(marker)
    return parts


def test_stock_deletes_leave_rows_and_bytes(mlflow_client, s3, marker, run_id):
    for version in ("1", "2"):
        mlflow_client.delete_model_version(marker, version)
    mlflow_client.delete_run(run_id)
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", settings().mlflow_tracking_uri]
    subprocess.run([*command, "--run-ids", run_id], check=True, capture_output=True)
    assert {"model_versions", "model_version_tags", "datasets", "inputs"} <= rows_with(marker, run_id)
    assert sweep_bytes(s3, BUCKET, [marker.encode()])
    assert in_file(marker)


def test_purge_leaves_no_row_no_object_version_and_no_byte(mlflow_client, s3, marker, run_id):
    other = models.log_run(mlflow_client, tracking.experiment(mlflow_client, "purge"), "other", metrics={"a": 1.0})
    assert len(rows_with(marker, run_id)) > 12
    assert sweep_bytes(s3, BUCKET, [marker.encode()])
    parts = purge_all(mlflow_client, s3, marker, run_id)
    assert all(part.rows for part in parts)
    assert rows_with(marker, run_id) == set()
    assert sweep_bytes(s3, BUCKET, [marker.encode(), run_id.encode()]) == []
    assert list_versions(s3, BUCKET, f"mlflow/{run_id}") == []
    assert not in_file(marker, run_id)
    assert mlflow_client.get_run(other).data.metrics == {"a": 1.0}


def test_purge_works_after_stock_deletes(mlflow_client, s3, marker, run_id):
    for version in ("1", "2"):
        mlflow_client.delete_model_version(marker, version)
    mlflow_client.delete_run(run_id)
    purge_all(mlflow_client, s3, marker, run_id)
    assert rows_with(marker, run_id) == set()
    assert sweep_bytes(s3, BUCKET, [marker.encode(), run_id.encode()]) == []


def test_run_of_a_living_version_is_refused(s3, marker, run_id):
    with tracking.backend() as connection, pytest.raises(StateError, match=f"{marker} version 1"):
        purge_run(connection, s3, BUCKET, run_id)
    assert "runs" in rows_with(run_id)


def test_files_that_another_version_shares_stay(mlflow_client, s3, marker, run_id):
    mlflow_client.copy_model_version(f"models:/{marker}/2", f"copy-{marker}")
    with tracking.backend() as connection:
        assert delete_version_for_real(connection, s3, BUCKET, marker, 2).objects == []
        assert delete_version_for_real(connection, s3, BUCKET, marker, 1).objects != []
    assert mlflow.pyfunc.load_model(f"models:/copy-{marker}/1").predict(["x"]) == ["x"]
    assert "runs" in rows_with(run_id)


def test_source_outside_of_the_run_is_left_to_its_owner(mlflow_client, s3, marker, run_id):
    s3.put_object(Bucket=BUCKET, Key="manifests/mine", Body=b"kept")
    version = models.register_version(mlflow_client, marker, run_id, f"s3://{BUCKET}/manifests")
    with tracking.backend() as connection:
        assert delete_version_for_real(connection, s3, BUCKET, marker, version).objects == []
    assert s3.get_object(Bucket=BUCKET, Key="manifests/mine")["Body"].read() == b"kept"


def test_unknown_ids_and_foreign_buckets_are_named(s3, run_id):
    with tracking.backend() as connection:
        with pytest.raises(UnknownIdError, match="no run 'nothing'"):
            purge_run(connection, s3, BUCKET, "nothing")
        with pytest.raises(UnknownIdError, match="nothing version 1"):
            delete_version_for_real(connection, s3, BUCKET, "nothing", 1)
    with tracking.backend() as connection, pytest.raises(PurgeError, match="elsewhere"):
        delete_version_for_real(connection, s3, "elsewhere", _model_of(connection, run_id), 1)


def _model_of(connection, run_id):
    query = "select name from model_versions where run_id = :run_id"
    return connection.execute(database.text(query), {"run_id": run_id}).scalars().first()
