"""Runs in child processes: workers that share one ledger and one model."""

import os
from pathlib import Path

from infra import database, tracking
from infra.settings import settings
from registry import models, versions
from registry.records import ModelVersion, VersionState
from tasks import source
from tasks.batches import read_batch
from tasks.exclusion import alone

FOLDER = "model"


def take_in_everything(environment, stream, answer):
    """Read every object of the source, as if no other worker did; answers the ids of what this one entered."""
    _enter(environment)
    entered = [read_batch.fn(stream, uri, tag) for uri, tag in source.list_objects(stream.source)]
    answer.put([batch.batch_id for batch in entered if batch is not None])


def register_everything(environment, stream, causes, scratch, answer):
    """Register a version for each cause that nobody registered yet, from a run with a file; answers its numbers."""
    _enter(environment)
    client = tracking.prepare_tracking()
    experiment = tracking.experiment(client, stream)
    folder = Path(scratch) / str(os.getpid())
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    made = []
    for cause in causes:
        run_id = models.log_run(client, experiment, cause, tags={"cause": cause}, model_folder=folder)
        with alone(stream), database.transaction() as session:
            if versions.find_by_cause(session, stream, cause) is None:
                number = models.register_version(client, stream, run_id, models.model_source(run_id))
                row = ModelVersion(stream, number, run_id, "key", 0, VersionState.READY, None, "why")
                versions.add_version(session, row, "sha", cause)
                made.append(number)
    answer.put(made)


def _enter(environment):
    os.environ.update(environment)
    settings.cache_clear()
