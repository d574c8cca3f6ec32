"""Runs in MLflow that no version of the catalog names: a crash left them between MLflow and the catalog."""

from contextlib import suppress

from infra import database, storage, tracking
from infra.settings import settings
from registry import model_purge, models, versions
from registry.aliases import TAG_PREFIX
from registry.errors import UnknownIdError
from registry.records import VersionState


def orphans_of(stream: str, only_ours: bool) -> list[str]:
    """Ids of those runs in the stream's experiment; `only_ours` leaves out what somebody else logged there.

    The caller holds the stream: a registration logs its run before the catalog names it."""
    client = tracking.prepare_tracking()
    with database.transaction() as session:
        named = {v.run_id for v in versions.versions(session, stream) if v.state != VersionState.ERASED}
    runs = models.all_runs(client, tracking.experiment(client, stream))
    return [
        run.info.run_id
        for run in runs
        if run.info.run_id not in named and (not only_ours or f"{TAG_PREFIX}cause" in run.data.tags)
    ]


def purge_run(stream: str, run_id: str) -> tuple[int, int]:
    """Remove a run with the versions that rest on it; returns (rows, object versions) that went."""
    s3, bucket = storage.s3(), settings().artifact_bucket
    with tracking.backend() as connection:
        removed = [
            model_purge.delete_version_for_real(connection, s3, bucket, stream, version)
            for version in model_purge.versions_of_run(connection, stream, run_id)
        ]
        with suppress(UnknownIdError):
            removed.append(model_purge.purge_run(connection, s3, bucket, run_id))
    return sum(sum(p.rows.values()) for p in removed), sum(len(p.objects) for p in removed)
