"""Runs and model versions in MLflow. The caller gives the client."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, ViewType
from mlflow.exceptions import MlflowException

from registry.aliases import TAG_PREFIX

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""
MODEL_FOLDER = "model"
ABOUT = """One version for each change of the stream `{model}`: a batch, a merge, a deletion.

`champion` answers, `challenger` waits for a person, `previous` is where `deciduous rollback {model}` goes. Who moved an
alias, when and why: `deciduous ls aliases --stream {model}`."""
BATCH_LIMIT = 1000  # metrics that MLflow takes in one call
PARAM_LIMIT = 100
CARD_LIMIT = 5000
"""Characters of a description in MLflow's tables: SQLite keeps more, PostgreSQL refuses it."""
CUT = "\n\nCut here: README.md of the source run has the whole card."


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a run rests on, as its page lists it. Put no name of a record or a person in it."""

    name: str
    digest: str
    """Up to 36 characters."""
    source: str
    profile: Mapping[str, int]


def log_run(
    client: "MlflowClient",
    experiment_id: str,
    name: str,
    *,
    params: Mapping[str, object] | None = None,
    metrics: Mapping[str, float | Sequence[float]] | None = None,
    tags: Mapping[str, object] | None = None,
    inputs: "Sequence[DataSet]" = (),
    figures: "Mapping[str, Figure] | None" = None,
    texts: Mapping[str, str] | None = None,
    model_folder: Path | None = None,
) -> str:
    """Record a finished run and return its id. A list of metric values is logged by step; figures and texts are
    named by file; the model folder becomes runs:/ID/model. A run that could not be recorded whole ends as FAILED."""
    if model_folder is not None and not any(model_folder.rglob("*")):
        raise ValueError(f"model folder {model_folder} holds no file")  # MLflow would log nothing, in silence
    run_id: str = client.create_run(experiment_id, run_name=name, tags=_prefixed(tags)).info.run_id
    try:
        entries = list(_metrics(metrics or {}))
        for start in range(0, len(entries), BATCH_LIMIT):
            client.log_batch(run_id, metrics=entries[start : start + BATCH_LIMIT])
        chosen = [Param(key, str(value)) for key, value in (params or {}).items()]
        for start in range(0, len(chosen), PARAM_LIMIT):
            client.log_batch(run_id, params=chosen[start : start + PARAM_LIMIT])
        if inputs:
            client.log_inputs(run_id, list(map(_input, inputs)))
        for file, figure in (figures or {}).items():
            client.log_figure(run_id, figure, file)
        for file, text in (texts or {}).items():
            client.log_text(run_id, text, file)
        if model_folder is not None:
            client.log_artifacts(run_id, str(model_folder), MODEL_FOLDER)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return run_id


def model_source(run_id: str) -> str:
    return f"runs:/{run_id}/{MODEL_FOLDER}"


def register_version(
    client: "MlflowClient",
    model: str,
    run_id: str,
    source: str,
    tags: Mapping[str, object] | None = None,
    description: str = "",
) -> int:
    """Register the run's model as the next version; the same run and source give the same version again."""
    try:
        client.create_registered_model(model, description=ABOUT.format(model=model))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in client.search_model_versions(f"name = '{model}' and run_id = '{run_id}'"):
        if known.source == source and known.current_stage != "Deleted_Internal":
            return int(known.version)
    made = client.create_model_version(model, source, run_id, tags=_prefixed(tags), description=description)
    return int(made.version)


def fitted(card: str) -> str:
    """As much of a card as MLflow keeps for a version, in whole lines where it has such."""
    if len(card) <= CARD_LIMIT:
        return card
    kept = card[: CARD_LIMIT - len(CUT)]
    return (kept.rpartition("\n")[0] or kept) + CUT


def list_versions(client: "MlflowClient", model: str) -> list[int]:
    """Versions of the model, oldest first; empty when nothing was registered."""
    return sorted(int(version.version) for version in client.search_model_versions(f"name = '{model}'"))


def all_runs(client: "MlflowClient", experiment_id: str) -> "Iterator[Run]":
    """Every run of an experiment, also failed ones and those that MLflow flagged as deleted."""
    token = None
    while token != "":
        page = client.search_runs([experiment_id], run_view_type=ViewType.ALL, page_token=token)
        yield from page
        token = page.token or ""


def _input(data: DataSet) -> DatasetInput:
    profile = json.dumps(dict(data.profile))
    described = Dataset(data.name, data.digest, "deciduous", json.dumps({"uri": data.source}), profile=profile)
    return DatasetInput(described, [InputTag("mlflow.data.context", "fit")])


def _metrics(values: Mapping[str, float | Sequence[float]]) -> list[Metric]:
    now = int(time.time() * 1000)
    series = {key: value if isinstance(value, Sequence) else [value] for key, value in values.items()}
    return [Metric(key, float(x), now, step) for key, steps in series.items() for step, x in enumerate(steps)]


def _prefixed(tags: Mapping[str, object] | None) -> dict[str, str]:
    """Our tags carry our prefix; MLflow's own keep theirs."""
    theirs = ("mlflow.", TAG_PREFIX)
    return {key if key.startswith(theirs) else TAG_PREFIX + key: str(value) for key, value in (tags or {}).items()}
