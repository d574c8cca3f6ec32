"""Read inputs to answer for, answer them with the champion, and write the answers where they were asked for."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from prefect.runtime import deployment
from pydantic import SecretStr

from infra import database, storage
from infra.settings import settings
from registry import catalog, versions
from registry.errors import SourceError, StateError
from registry.records import VersionState
from registry.versions import CHAMPION
from tasks import disk_cache, source
from tasks.entitlement import Entitlements
from tasks.formats import missing_columns, what_it_has
from tasks.manifests import load_manifest
from tasks.narration import say
from tasks.prediction_log import note_prediction
from tasks.reading import input_fault, rows_of
from tasks.retries import step
from tasks.runs import refuse_after_losses
from tasks.serving import Answerer

CHUNK = 512

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked: by whom, of which version. Kept for the whole run, whatever is promoted or granted meanwhile."""

    stream: str
    version: int
    groups: tuple[str, ...]
    snapshot: str


@step("open-predictions-{stream}")
def open_job(stream: str, groups: Sequence[str], caller: SecretStr | None = None) -> Job:
    """The champion as it is now, and what the caller is entitled to. Raises StateError without a champion, and where a
    deployed run was given a caller's secret."""
    refuse_after_losses()
    with database.transaction() as session:
        catalog.get_stream(session, stream)
        champion = versions.alias_of(session, stream, CHAMPION)
    if champion is None:
        raise StateError(
            f"stream {stream!r} has no champion: `deciduous status {stream}` shows a deletion that withdrew it and "
            "ends with another; else `deciduous run` a batch or promote a version first"
        )
    shown, grants = caller.get_secret_value() if caller else None, Entitlements()
    if deployment.id is not None:
        grants.refuse_secret(stream, shown)
    entitled = grants.of(stream, shown, groups)
    return Job(stream, champion, entitled.groups, entitled.snapshot)


@step("list-inputs-{job.stream}")
def list_unanswered(job: Job, uri: str, out: str) -> list[tuple[str, str]]:
    """(input, output) of the objects whose answers are not there yet: what an interrupted run left, and what is new."""
    _require_place(out)
    asked = [(found, answers_uri(job, found, tag, out)) for found, tag in source.list_objects(uri)]
    for found, _ in asked:
        if found.lower().endswith(".parquet"):
            _require_apart(found, out)
    left = [(found, answers) for found, answers in asked if not _exists(answers)]
    say(f"{job.stream}: {len(left)} of {len(asked)} objects have no answers by version {job.version} yet")
    return left


def _require_place(out: str) -> None:
    if not out.strip() or (source.is_s3(out) and not source.split_s3(out)[0]):
        raise StateError(f"{out!r} names no place for answers; give a folder, a .parquet file or s3://BUCKET/PREFIX")


def _require_apart(asked: str, out: str) -> None:
    """Raise StateError where answers would take the place of what is asked, or be asked themselves the next time."""
    if asked.startswith("s3://"):
        inside = f"{asked}/".startswith(f"{out.rstrip('/')}/")
    else:
        inside = not out.startswith("s3://") and Path(asked).resolve().is_relative_to(Path(out).resolve())
    if inside:
        raise StateError(f"{asked} is asked and lies where answers go, {out}; choose another place for the answers")


def answers_uri(job: Job, uri: str, tag: str, out: str) -> str:
    """Named by the input and its tag (size and time, or ETag), the version and the groups: the same question finds its
    answers again."""
    asked = "\x1f".join([uri, tag, str(job.version), *job.groups])
    return f"{out.rstrip('/')}/{source.batch_name(uri)}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.parquet"


@step("read-inputs-{stream}")
def read_inputs(stream: str, uri: str, out: str | None = None) -> Rows:
    """Rows with the stream's input column, and its id column where the file has one. Raises StateError where the
    answers would be written over them."""
    if out is not None:
        _require_place(out)
        _require_apart(uri, out)
    with database.transaction() as session:
        about = catalog.get_stream(session, stream)
    columns = about.columns
    data = _content(uri)
    missing, told = missing_columns(data, uri, [columns.input, columns.id], settings().object_bytes)
    if columns.input in missing:
        raise SourceError(f"{uri} has no column {columns.input!r}; {what_it_has(data, uri, told)}")
    kept = [name for name in (columns.id, columns.input) if name not in missing]
    raw = list(rows_of(data, uri, kept))
    faults = [(n, row.fault or input_fault(about.task, row.cells.get(columns.input))) for n, row in enumerate(raw)]
    bad = [(number, fault) for number, fault in faults if fault is not None]
    if bad:
        number, fault = bad[0]
        raise SourceError(
            f"{uri} has {len(bad)} rows that cannot be answered, first row {number}: {fault}; remove or correct them"
        )
    return [{name: row.cells[name] for name in kept if name in row.cells} for row in raw]


def _content(uri: str) -> bytes:
    try:
        return source.fetch(uri, "")[1]
    except SourceError:  # first, for a name may hold what a pattern does
        if not source.names_many(uri):
            raise
        raise SourceError(
            f"{uri} is no object but a folder or a pattern: with `--out FOLDER` each of its objects is answered, into "
            "a file of its own there"
        ) from None


@step("answer-{job.stream}")
def answer_rows(job: Job, rows: Rows) -> Rows:
    """A label or a completion, its score, the likeliest adapter, all that took part, and the version, per row.

    Raises StateError once a deletion has taken the job's version out of service."""
    _require_ready(job)
    answerer = Answerer(load_manifest(job.stream, job.version))
    columns, answers = answerer.stream.columns, []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        raw = [row[columns.input] for row in chunk]
        found = answerer.answer([i if isinstance(i, bytes) else str(i).encode() for i in raw], job.groups)
        _require_ready(job)
        note_prediction(job.stream, job.version, job.snapshot, found)
        best = found.scores_NC.max(1).values.double().tolist()
        for number, row in enumerate(chunk):
            answers.append(
                {
                    "row": _readable(row.get(columns.id, start + number)),
                    answerer.stream.answers: found.labels[number],
                    "score": best[number],
                    "adapter": found.adapter_ids[number],
                    "adapters": list(found.visits[number]),
                    "version": job.version,
                }
            )
    say(f"{job.stream}: {len(rows)} rows answered by version {job.version}")
    return answers


def _readable(id_: object) -> object:
    """Some writers of Parquet call every text binary."""
    return id_.decode(errors="backslashreplace") if isinstance(id_, bytes) else id_


@step("write-answers-{job.stream}")
def write_answers(job: Job, answers: Rows, out: str) -> str:
    """One Parquet file, whole or not at all; version, groups and grants stand in its metadata."""
    with database.transaction() as session:
        named = catalog.get_stream(session, job.stream).answers
    schema = pa.schema(
        [("row", pa.string()), (named, pa.string()), ("score", pa.float64()), ("adapter", pa.string()),
         ("adapters", pa.list_(pa.string())), ("version", pa.int64())],
        {"stream": job.stream, "version": str(job.version), "groups": ",".join(job.groups), "grants": job.snapshot},
    )  # fmt: skip
    rows = [{**answer, "row": None if answer["row"] is None else str(answer["row"])} for answer in answers]
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    if out.startswith("s3://"):
        bucket, key = source.split_s3(out)
        with _answers_in(bucket):
            storage.s3().put_object(Bucket=bucket, Key=key, Body=sink.getvalue())
    else:
        disk_cache.write_whole(Path(out), sink.getvalue())
    return out


def _require_ready(job: Job) -> None:
    with database.transaction() as session:
        state = versions.get_version(session, job.stream, job.version).state
    if state != VersionState.READY:
        raise StateError(
            f"version {job.version} of {job.stream!r} is {state}: a deletion took it out of service; run again, the "
            "champion that serves then answers"
        )


@contextmanager
def _answers_in(bucket: str) -> Iterator[None]:
    """Raises StateError for a bucket that takes no answers, and what `failure` says for an S3 that does not answer."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else None
        if code in {"NoSuchBucket", "AccessDenied"} or isinstance(error, ParamValidationError):
            raise StateError(f"bucket {bucket!r} takes no answers ({code or 'no such name'}); check it") from None
        raise storage.failure(error) from error


def _exists(uri: str) -> bool:
    if not uri.startswith("s3://"):
        return Path(uri).exists()
    bucket, key = source.split_s3(uri)
    with _answers_in(bucket):
        listed = storage.s3().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    return any(found["Key"] == key for found in listed.get("Contents", []))
