"""Runs, versions and aliases in a real MLflow database with real S3 behind it."""

import uuid

import matplotlib.pyplot as plt
import pytest
from boto3.exceptions import S3UploadFailedError

from infra import tracking
from registry import aliases, figures, models
from registry.errors import UnknownIdError


@pytest.fixture
def model(mlflow_client):
    """Name of a model and of a stream of the test's own."""
    assert mlflow_client is not None
    return f"model-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def run_id(mlflow_client, model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    experiment = tracking.experiment(mlflow_client, model)
    return models.log_run(mlflow_client, experiment, "learn-1", model_folder=tmp_path / "model")


def test_experiment_is_made_once_in_the_artifact_bucket(mlflow_client, model):
    made = tracking.experiment(mlflow_client, model)
    assert tracking.experiment(mlflow_client, model) == made
    assert mlflow_client.get_experiment(made).artifact_location == "s3://deciduous/mlflow"


def test_run_keeps_metrics_by_step_params_tags_figures_and_texts(mlflow_client, model):
    run_id = models.log_run(
        mlflow_client,
        tracking.experiment(mlflow_client, model),
        "learn-1",
        params={"rank": 16},
        metrics={"accuracy": [0.5, 0.75], "shift": 3},
        tags={"batch": "b1", "mlflow.note.content": "note"},
        figures={"figures/shift.png": figures.draw_shift({"layer_9": {"a1": 2.5}})},
        texts={"decision.md": "| reuse |"},
    )
    run = mlflow_client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "learn-1")
    assert run.data.params == {"rank": "16"}
    assert run.data.metrics == {"accuracy": 0.75, "shift": 3.0}
    assert [metric.value for metric in mlflow_client.get_metric_history(run_id, "accuracy")] == [0.5, 0.75]
    assert run.data.tags["deciduous.batch"] == "b1"
    assert run.data.tags["mlflow.note.content"] == "note"
    assert {entry.path for entry in mlflow_client.list_artifacts(run_id)} == {"figures", "decision.md"}


def test_run_that_cannot_be_recorded_whole_ends_as_failed(mlflow_client, model):
    experiment = tracking.experiment(mlflow_client, model)
    with pytest.raises(S3UploadFailedError, match="Invalid Request"):
        models.log_run(mlflow_client, experiment, "learn-1", texts={"../decision.md": ""})
    (run,) = mlflow_client.search_runs([experiment])
    assert run.info.status == "FAILED"


def test_model_folder_without_files_is_refused(mlflow_client, model, tmp_path):
    experiment = tracking.experiment(mlflow_client, model)
    with pytest.raises(ValueError, match="holds no file"):
        models.log_run(mlflow_client, experiment, "learn-1", model_folder=tmp_path)


def test_register_is_idempotent_and_counts_up(mlflow_client, model, run_id):
    source = models.model_source(run_id)
    register = lambda source: models.register_version(  # noqa: E731
        mlflow_client, model, run_id, source, {"epoch": 0}, "# card"
    )
    assert [register(source), register(source)] == [1, 1]
    assert register(f"{source}/manifest.json") == 2
    assert models.list_versions(mlflow_client, model) == [1, 2]
    version = mlflow_client.get_model_version(model, "1")
    assert version.tags == {"deciduous.epoch": "0"}
    assert version.description == "# card"


def test_a_card_is_cut_at_a_line_to_what_postgresql_takes():
    card = "\n".join(["one reason", *["| a shard | of a group |"] * 300])
    assert models.fitted(card[:4000]) == card[:4000]
    cut = models.fitted(card)
    assert 4900 < len(cut) <= models.CARD_LIMIT
    assert cut.endswith(f"| a shard | of a group |{models.CUT}")
    assert len(models.fitted("x" * 9000)) == models.CARD_LIMIT


def test_alias_moves_and_goes(mlflow_client, model, run_id):
    assert aliases.find_alias(mlflow_client, model, "champion") is None
    for suffix in ("", "/manifest.json"):
        models.register_version(mlflow_client, model, run_id, models.model_source(run_id) + suffix)
    assert aliases.find_alias(mlflow_client, model, "champion") is None
    for version in (1, 2, 1):
        aliases.set_alias(mlflow_client, model, "champion", version)
        assert aliases.find_alias(mlflow_client, model, "champion") == version
    for version, who in ((2, "Ann"), (2, "nobody"), (1, "Bob")):
        aliases.move_alias(mlflow_client, model, "champion", version, f"by {who}")
    assert mlflow_client.get_model_version(model, "1").tags == {"deciduous.champion": "by Bob"}
    assert mlflow_client.get_model_version(model, "2").tags == {}
    for _ in range(2):
        aliases.move_alias(mlflow_client, model, "champion", None, "")
    assert aliases.find_alias(mlflow_client, model, "champion") is None


def test_alias_to_an_unknown_version_is_an_error_that_names_it(mlflow_client, model, run_id):
    models.register_version(mlflow_client, model, run_id, models.model_source(run_id))
    with pytest.raises(UnknownIdError, match=f"{model} version 7"):
        aliases.set_alias(mlflow_client, model, "champion", 7)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.draw_shift({"layer_9": {"a1": 2.5, "a2": -1.0}, "layer_10": {"a2": 0.0}}),
        lambda: figures.draw_shift({}),
        lambda: figures.draw_accuracy([("after b1", [0.9, float("nan")]), ("b2", [0.8, 0.95])], ["b1", "b2"]),
        lambda: figures.draw_growth({"serving": [1, 2, 1], "merged": [0, 0, 1]}, ["b1", "b2", "b3"]),
    ],
)
def test_figures_are_drawn_without_global_state(draw, tmp_path):
    draw().savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []
