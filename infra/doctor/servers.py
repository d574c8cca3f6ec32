"""MLflow and Prefect: do they answer, do their versions and tables fit, does a worker live for each pool."""

import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from infra import database
from infra.doctor.findings import Finding, bad, good, poor
from infra.errors import UnreachableError
from infra.orchestration import api_address, call_api, online_workers, pool_names
from infra.settings import settings
from infra.workers import CPU, GPU


def examine_mlflow() -> Iterator[Finding]:
    uri = settings().mlflow_tracking_uri
    if not uri.startswith(("http:", "https:")):
        url = database.parse(uri)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            yield good("mlflow", "its database will be made on first use")
            return
    else:
        yield _compared("mlflow", uri, _mlflow_version(uri))
        if settings().mlflow_database_url is None:
            yield bad("mlflow", "a deletion cannot reach the server's rows", "set DECIDUOUS_MLFLOW_DATABASE_URL")
    from infra import tracking  # noqa: PLC0415  importing MLflow takes seconds

    client = tracking.prepare_tracking()
    client.search_experiments(max_results=1)
    yield good("mlflow", f"lets {settings().mlflow_username or 'anybody'} in")
    if settings().mlflow_database_url is not None:
        with tracking.backend() as connection:
            connection.exec_driver_sql("select 1")
        yield good("mlflow", "its database answers too")


def examine_prefect() -> Iterator[Finding]:
    api = api_address()
    if api is None:
        yield good("prefect", "no server: each command runs an API of its own; schedules and events need one")
        return
    yield _compared("prefect", api, call_api(api, "/admin/version"))
    known = pool_names(api)
    for pool in (CPU, GPU):
        yield _workers(api, pool) if pool in known else poor("prefect", f"no work pool {pool}", "deciduous deploy FILE")


def _workers(api: str, pool: str) -> Finding:
    online = online_workers(api, pool)
    if online:
        return good("prefect", f"pool {pool} is served by {', '.join(online)}")
    return poor("prefect", f"pool {pool} has no worker: what is scheduled there waits", f"deciduous worker {pool}")


def _compared(part: str, address: str, theirs: str) -> Finding:
    ours = version(part)
    if theirs.split(".")[:2] == ours.split(".")[:2]:
        return good(part, f"{address} runs {theirs}")
    return poor(
        part, f"{address} runs {theirs}, this code was tested with {ours}", "run the same version on both sides"
    )


def _mlflow_version(uri: str) -> str:
    config = settings()
    request = urllib.request.Request(f"{uri}/version")
    if config.mlflow_username and config.mlflow_password:
        login = f"{config.mlflow_username}:{config.mlflow_password.get_secret_value()}"
        request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError as error:
        remedy = "check DECIDUOUS_MLFLOW_TRACKING_URI, DECIDUOUS_MLFLOW_USERNAME and DECIDUOUS_MLFLOW_PASSWORD"
        raise UnreachableError("MLflow", uri, f"{error}; {remedy}") from error
