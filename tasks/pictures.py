"""A version's figures on the run's page: as tables, which last, and as images where links to the store last."""

from math import isnan

from prefect.artifacts import create_image_artifact, create_table_artifact

from infra import database, storage, tracking
from infra.settings import settings
from registry import contents
from registry.records import ModelVersion
from registry.stream import Stream
from tasks.model_card import DRAWN, accuracy_matrix
from tasks.source import split_s3

FIGURES = ("accuracy_matrix.png", "shift.png", "adapters.png")
LINK_SECONDS = 7 * 24 * 3600
"""The longest that S3 signs for."""


def show_figures(stream: Stream, version: ModelVersion) -> None:
    """The accuracy matrix as a table; the figures as images by presigned links.

    The embedded S3 has another port after every start, so that its links would soon lead nowhere: tables only."""
    with database.transaction() as session:
        done = contents.done_shards(session, stream.name)
    shown = list(dict.fromkeys(shard.batch_id for shard in done))[-DRAWN:]
    names, matrix = accuracy_matrix(stream.name, shown)
    rows = [
        {"after": after, **{name: round(a, 3) for name, a in zip(names, row, strict=True) if not isnan(a)}}
        for after, row in matrix
    ]
    create_table_artifact(rows, key=f"accuracy-{stream.name}", description="accuracy on earlier batches, by batch")
    if settings().s3_endpoint is not None:
        for file, link in presigned_figures(version).items():
            key = f"{file.removesuffix('.png').replace('_', '-')}-{stream.name}"
            create_image_artifact(link, key=key, description=f"{stream.name}/{version.version}; link good for 7 days")


def presigned_figures(version: ModelVersion) -> dict[str, str]:
    """File -> link, for the figures that the version's MLflow run holds."""
    run = tracking.prepare_tracking().get_run(version.run_id)
    bucket, prefix = split_s3(tracking.stored_at(run.info.artifact_uri))
    listed = storage.s3().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")
    there = {found["Key"] for found in listed.get("Contents", [])}
    return {
        file: storage.s3().generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": f"{prefix}/{file}"}, ExpiresIn=LINK_SECONDS
        )
        for file in FIGURES
        if f"{prefix}/{file}" in there
    }
