"""The MLflow client of this process, and the database behind it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient, set_registry_uri, set_tracking_uri
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy import Connection, Engine

from infra import database, storage
from infra.environment import mlflow_environment
from infra.errors import UnreachableError
from infra.files import locked
from infra.settings import Settings, settings

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
BUSY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
"""MLflow's names for what may pass; the first one also stands for no answer at all."""
PROXIED = "mlflow-artifacts"  # the server is started with --artifacts-destination s3://BUCKET/mlflow


def prepare_tracking() -> MlflowClient:
    """Point MLflow at the settings' registry and S3; returns its client.

    Raises UnreachableError when the tracking server or its database does not answer."""
    wanted = mlflow_environment()
    os.environ.update(wanted)
    if KEYS[0] in wanted and _session_keys() not in (None, tuple(wanted[name] for name in KEYS)):
        boto3.setup_default_session()  # MLflow's own clients come from it, and it never reads keys a second time
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    set_tracking_uri(settings().mlflow_tracking_uri)
    set_registry_uri(settings().mlflow_tracking_uri)
    return _client(settings())


def _session_keys() -> tuple[str, str] | None:
    """What boto3's default session goes by; None where there is none, or nothing was found for it."""
    found = boto3.DEFAULT_SESSION.get_credentials() if boto3.DEFAULT_SESSION is not None else None
    return (found.access_key, found.secret_key) if found is not None else None


def experiment(client: MlflowClient, stream: str) -> str:
    """Id of the stream's experiment, made on first use. Its artifacts lie in the artifact bucket under mlflow/: an
    MLflow server has to be told so, and passes them through where it serves artifacts itself."""
    found = client.get_experiment_by_name(stream)
    if found is not None:
        return str(found.experiment_id)
    location = None if has_server() else f"s3://{settings().artifact_bucket}/mlflow"
    try:
        return str(client.create_experiment(stream, artifact_location=location))
    except MlflowException:
        made = client.get_experiment_by_name(stream)  # another process may have been faster
        if made is None:
            raise
        return str(made.experiment_id)


def has_server() -> bool:
    return settings().mlflow_tracking_uri.startswith(("http:", "https:"))


def stored_at(artifact_uri: str) -> str:
    """Where the objects of a run lie in S3, also where a server passes them through."""
    scheme, _, path = artifact_uri.partition(":/")
    return f"s3://{settings().artifact_bucket}/mlflow/{path.strip('/')}" if scheme == PROXIED else artifact_uri


@contextmanager
def backend() -> Iterator[Connection]:
    """A transaction in MLflow's own database, for what its API cannot delete. Call no client inside it on SQLite:
    the client would wait for this transaction."""
    with backend_engine().begin() as connection:
        yield connection


def backend_engine() -> Engine:
    url = settings().mlflow_database_url or settings().mlflow_tracking_uri
    if url.startswith(("http:", "https:")):
        remedy = "set DECIDUOUS_MLFLOW_DATABASE_URL to the database of that server, so that a deletion reaches its rows"
        raise UnreachableError("the database behind MLflow", url, remedy)
    return _backend(url)


@contextmanager
def asking() -> Iterator[None]:
    """Around calls of MLflow's client, which writes artifacts as well: a server or store that is away, broken or busy
    raises UnreachableError, so that the step is repeated; MLflow itself gave up by then. A store that refuses our keys
    raises RefusedError."""
    try:
        yield
    except (BotoCoreError, ClientError, S3UploadFailedError) as error:
        raise storage.failure(error) from error
    except (MlflowException, RequestException) as error:
        if not has_server() or getattr(error, "error_code", BUSY[0]) not in BUSY:
            raise
        raise _unreachable(error) from error


def compact() -> None:
    """Overwrite what deleted rows left in the files of MLflow's database."""
    database.compact(backend_engine())


@cache
def _client(config: Settings) -> MlflowClient:
    try:
        with locked(config.home / "mlflow.lock"):  # two processes would both make the tables, already here
            client = MlflowClient(config.mlflow_tracking_uri, config.mlflow_tracking_uri)
            client.search_experiments(max_results=1)
    except MlflowException as error:
        raise _unreachable(error) from error
    return client


def _unreachable(error: Exception) -> UnreachableError:
    address = _without_password(settings().mlflow_tracking_uri)
    return UnreachableError("MLflow", address, f"{error}; check DECIDUOUS_MLFLOW_TRACKING_URI")


@cache
def _backend(url: str) -> Engine:
    return database.open_engine(url)


def _without_password(uri: str) -> str:
    return uri if "@" not in uri else f"...@{uri.rsplit('@', 1)[1]}"
