"""Delete MLflow versions and runs for real: rows, tags, inputs, data sets, logged models and every object version.

MLflow's own deletes redact or flag rows and add delete markers to objects (measured in docs/decisions/0301). These
functions work on MLflow's tables by a connection that the caller opened on its database, SQLite or PostgreSQL, and
commit nothing. Objects go first: while the rows stand, a purge that broke off can be run again."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, Connection, MetaData, RowMapping, Table, select

from registry.artifacts import purge_prefix
from registry.errors import PurgeError, StateError, UnknownIdError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DEFAULT_WORKSPACE = "default"
PROXIED, PROXIED_FOLDER = "mlflow-artifacts", "mlflow"
TRACE_LOCATION = "mlflow.artifactLocation"
TRACE_TABLES = {
    "assessments": "trace_id",
    "spans": "trace_id",
    "span_metrics": "trace_id",
    "trace_metrics": "request_id",
    "trace_request_metadata": "request_id",
    "trace_tags": "request_id",
    "trace_info": "request_id",
}
"""Table -> the column that names the trace; what others refer to comes last."""
LOGGED_MODEL = "/models/m-"  # part of the address of MLflow's logged models
KEPT = {"workspace", "name", "version", "creation_time"}
TOMBSTONE = "Deleted_Internal"  # the stage by which MLflow hides a version and still counts it


@dataclass(frozen=True)
class Purged:
    """What a purge removed: rows by table, and (key, version id) of objects."""

    rows: dict[str, int] = field(default_factory=dict)
    objects: list[tuple[str, str]] = field(default_factory=list)


def delete_version_for_real(
    connection: Connection, s3: "S3Client", bucket: str, model: str, version: int, workspace: str = DEFAULT_WORKSPACE
) -> Purged:
    """Remove a model version, its aliases and tags, and those files of its run that no other version shares.

    A version that MLflow deleted before is found as well, for its row and tags are still there. A source outside of
    its run (blobs that the catalog owns) is left alone. Purge the run afterwards, with `purge_run`. The number of the
    newest version stays taken, by a row that holds nothing else: MLflow would give it again."""
    tables = _Tables(connection)
    versions = tables["model_versions"]
    this = _all_equal(versions, name=model, version=version, workspace=workspace)
    row = connection.execute(select(versions).where(this)).mappings().one_or_none()
    if row is None or _is_tombstone(row):
        raise UnknownIdError("model version", f"{model} version {version}")
    near = (versions.c.run_id == row["run_id"]) | (versions.c.storage_location == row["storage_location"])
    others = connection.execute(select(versions).where(near, ~this)).mappings()
    location = _resolve(tables, row)
    shared = location in {_resolve(tables, other) for other in others}
    owned = location is not None and (str(row["run_id"]) in location or LOGGED_MODEL in location)
    purged = Purged(objects=_purge_files(s3, bucket, location) if location and owned and not shared else [])
    for name in ("model_version_tags", "registered_model_aliases"):
        tables.delete(name, _all_equal(tables[name], name=model, version=version, workspace=workspace), purged)
    _bury(tables, model, version, workspace, purged)
    return purged


def _bury(tables: "_Tables", model: str, version: int, workspace: str, purged: Purged) -> None:
    """Delete a version's row; that of the newest version is emptied instead, and older empty ones go."""
    versions = tables["model_versions"]
    numbers = tables.values(versions.c.version, _all_equal(versions, name=model, workspace=workspace))
    for number in sorted(numbers):
        this = _all_equal(versions, name=model, version=number, workspace=workspace)
        if number == version == max(numbers):
            emptied = {c.name: None for c in versions.columns if c.name not in KEPT} | {"current_stage": TOMBSTONE}
            tables.connection.execute(versions.update().where(this).values(emptied))
            purged.rows["model_versions"] = purged.rows.get("model_versions", 0) + 1
        elif number == version or (number < max(numbers) and _is_tombstone(_row(tables, this))):
            tables.delete("model_versions", this, purged)


def _row(tables: "_Tables", this: ColumnElement[bool]) -> RowMapping:
    return tables.connection.execute(select(tables["model_versions"]).where(this)).mappings().one()


def _is_tombstone(row: RowMapping) -> bool:
    return row["current_stage"] == TOMBSTONE and row["run_id"] is None


def versions_of_run(connection: Connection, model: str, run_id: str, workspace: str = DEFAULT_WORKSPACE) -> list[int]:
    """Versions of the model that rest on this run."""
    tables = _Tables(connection)
    versions = tables["model_versions"]
    return tables.values(versions.c.version, _all_equal(versions, name=model, run_id=run_id, workspace=workspace))


def purge_run(connection: Connection, s3: "S3Client", bucket: str, run_id: str) -> Purged:
    """Remove a run and all that hangs on it. Raises StateError while a model version still rests on it."""
    tables = _Tables(connection)
    versions, runs, models = tables["model_versions"], tables["runs"], tables["logged_models"]
    # a version that MLflow "deleted" has a redacted run, but its storage location still names it
    rests = (versions.c.run_id == run_id) | versions.c.storage_location.contains(run_id, autoescape=True)
    resting = connection.execute(select(versions.c.name, versions.c.version).where(rests)).all()
    if resting:
        named = ", ".join(f"{name} version {version}" for name, version in resting)
        raise StateError(f"run {run_id!r} still carries {named}; delete those versions first")
    locations = connection.execute(select(runs.c.artifact_uri).where(runs.c.run_uuid == run_id)).scalars().all()
    if not locations:
        raise UnknownIdError("run", run_id)
    logged = connection.execute(
        select(models.c.model_id, models.c.artifact_location).where(models.c.source_run_id == run_id)
    ).all()
    purged = Purged()
    for location in (*locations, *(model.artifact_location for model in logged)):
        purged.objects.extend(_purge_files(s3, bucket, location))
    _delete_run_rows(tables, run_id, [model.model_id for model in logged], purged)
    return purged


def purge_traces(
    connection: Connection, s3: "S3Client", bucket: str, experiment_id: str, texts: Sequence[str]
) -> Purged:
    """Remove an experiment's traces that hold one of the texts, with their files, which MLflow's own delete leaves."""
    tables, purged = _Tables(connection), Purged()
    info, spans, tags = tables["trace_info"], tables["spans"], tables["trace_tags"]
    written = {
        form for text in texts for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    }
    ids = set[str]()
    for text in sorted(written):
        held = spans.c.content.contains(text, autoescape=True), info.c.request_preview.contains(text, autoescape=True)
        ids.update(tables.values(spans.c.trace_id, (spans.c.experiment_id == int(experiment_id)) & held[0]))
        ids.update(tables.values(info.c.request_id, (info.c.experiment_id == int(experiment_id)) & held[1]))
    for location in tables.values(tags.c.value, tags.c.request_id.in_(ids) & (tags.c.key == TRACE_LOCATION)):
        purged.objects.extend(_purge_files(s3, bucket, location))
    for name, column in TRACE_TABLES.items():
        tables.delete(name, tables[name].c[column].in_(ids), purged)
    return purged


def _delete_run_rows(tables: "_Tables", run_id: str, model_ids: Collection[str], purged: Purged) -> None:
    owners = [run_id, *model_ids]
    inputs = tables["inputs"]
    linked = inputs.c.destination_id.in_(owners) | inputs.c.source_id.in_(owners)
    input_ids = tables.values(inputs.c.input_uuid, linked)
    dataset_ids = tables.values(inputs.c.source_id, linked)
    tables.delete("input_tags", tables["input_tags"].c.input_uuid.in_(input_ids), purged)
    tables.delete("inputs", linked, purged)
    metrics = tables["logged_model_metrics"]
    tables.delete("logged_model_metrics", metrics.c.model_id.in_(model_ids) | (metrics.c.run_id == run_id), purged)
    for name in ("logged_model_params", "logged_model_tags", "logged_models"):
        tables.delete(name, tables[name].c.model_id.in_(model_ids), purged)
    datasets = tables["datasets"]
    still_used = select(inputs.c.source_id).where(inputs.c.source_id == datasets.c.dataset_uuid).exists()
    tables.delete("datasets", datasets.c.dataset_uuid.in_(dataset_ids) & ~still_used, purged)
    tables.delete("assessments", tables["assessments"].c.run_id == run_id, purged)
    for name in ("params", "metrics", "latest_metrics", "tags", "runs"):
        tables.delete(name, tables[name].c.run_uuid == run_id, purged)


class _Tables:
    """MLflow's tables as its database has them: read from there, for its classes are not a public interface."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.metadata = MetaData()

    def __getitem__(self, name: str) -> Table:
        return Table(name, self.metadata, autoload_with=self.connection, resolve_fks=False)

    def values(self, column: ColumnElement[Any], where: ColumnElement[bool]) -> list[Any]:
        return list(self.connection.execute(select(column).where(where)).scalars())

    def delete(self, name: str, where: ColumnElement[bool], purged: Purged) -> None:
        count = self.connection.execute(self[name].delete().where(where)).rowcount
        if count:
            purged.rows[name] = purged.rows.get(name, 0) + count


def _all_equal(table: Table, **wanted: object) -> ColumnElement[bool]:
    first, *others = [table.c[name] == value for name, value in wanted.items()]
    for other in others:
        first = first & other
    return first


def _resolve(tables: _Tables, version: RowMapping) -> str | None:
    """Where the files of a version lie: MLflow records a URI, or the run or logged model to ask. None: no longer
    known, because that is gone."""
    location: str = version["storage_location"] or version["source"]
    scheme, _, rest = location.partition(":/")
    if scheme not in {"runs", "models"}:
        return location
    owner, _, path = rest.strip("/").partition("/")
    if scheme == "runs":
        runs = tables["runs"]
        found = tables.values(runs.c.artifact_uri, runs.c.run_uuid == owner)
    else:
        models = tables["logged_models"]
        found = tables.values(models.c.artifact_location, models.c.model_id == owner)
    return f"{found[0]}/{path}".rstrip("/") if found else None


def _purge_files(s3: "S3Client", bucket: str, location: str) -> list[tuple[str, str]]:
    parts = urlsplit(location)
    prefix = parts.path.strip("/")
    if parts.scheme == PROXIED and prefix:  # the server is told --artifacts-destination s3://BUCKET/mlflow
        return purge_prefix(s3, bucket, f"{PROXIED_FOLDER}/{prefix}/")
    if parts.scheme != "s3" or parts.netloc != bucket or not prefix:
        raise PurgeError(f"cannot purge {location!r}: it does not lie in bucket {bucket!r}; remove it where it is")
    return purge_prefix(s3, bucket, f"{prefix}/")
