"""The servers that an organisation has, on this machine: PostgreSQL under everything, S3 by address, MLflow behind a
login with proxied artifacts, a Prefect server, a worker for each pool."""

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from infra import database, orchestration, postgres, seaweed, stack, storage, workers
from infra.children import Child, spawn, tail
from infra.environment import mlflow_environment, prefect_environment
from infra.errors import InfraError, StartError
from infra.files import create_private, locked, write_private
from infra.orchestration import PREFECT
from infra.ports import LOOPBACK, free_ports, is_free
from infra.services import Service, load_services, save_services
from infra.settings import served_file, settings
from infra.stack import MLFLOW, ServiceStatus, log_file, python_module, wait_until_healthy

POSTGRES = "postgres"
DATABASES = ("deciduous", "mlflow", "mlflow-auth", "prefect")
LOGIN = "deciduous"
WORKER_SECONDS = 90


def is_production(home: Path) -> bool:
    return served_file(home).exists()


def up(say: Callable[[str], None] = lambda _: None) -> list[ServiceStatus]:
    """Start what does not run yet, and wait until all of it answers. Raises StartError with the end of the log, after
    ending everything where nothing ran before."""
    before = load_services(settings().home)
    try:
        _up(say)
    except InfraError:
        if not before:
            stack.down()
        raise
    return stack.stack_status()


def _up(say: Callable[[str], None]) -> None:
    home = settings().home
    with locked(home / "stack.lock"):
        running = {service.name: service for service in load_services(home) if service.child.is_alive()}
        plan = _Plan(home, keep_ports=bool(running))

        def ensure(name: str, start: Callable[[], Service]) -> None:
            if name not in running:
                say(f"starting {name}")
                running[name] = start()
                save_services(home, running.values())

        ensure(POSTGRES, plan.start_postgres)
        say("starting S3")
        plan.publish(seaweed.hold(home).endpoint)
        database.migrate()
        storage.prepare_buckets()
        ensure(MLFLOW, plan.start_mlflow)
        ensure(PREFECT, plan.start_prefect)
        for name in (MLFLOW, PREFECT):
            wait_until_healthy(running[name])
        for pool in (workers.CPU, workers.GPU):
            orchestration.ensure_pool(plan.prefect_api, pool)
            ensure(f"worker-{pool}", partial(plan.start_worker, pool))
        for pool in (workers.CPU, workers.GPU):
            _await_worker(running[f"worker-{pool}"], plan.prefect_api, pool)


def _await_worker(worker: Service, api: str, pool: str) -> None:
    waiting = Retrying(
        stop=stop_after_delay(WORKER_SECONDS), wait=wait_fixed(0.2), retry=retry_if_result(lambda w: not w)
    )
    with suppress(RetryError):
        waiting(lambda: not worker.child.is_alive() or orchestration.online_workers(api, pool))
    if not worker.child.is_alive() or not orchestration.online_workers(api, pool):
        log = stack.log_file(worker.name)
        raise StartError(f"{worker.name} did not come up; the end of {log}:\n{tail(log)}")


class _Plan:
    """Ports and passwords of a home, drawn once, and how each server is started with them."""

    def __init__(self, home: Path, keep_ports: bool) -> None:
        self.home = home
        drawn = json.loads(create_private(home / "production.json", _draw))
        if not keep_ports and not all(is_free(port) for port in drawn["ports"].values()):
            drawn["ports"] = _ports()
            write_private(home / "production.json", json.dumps(drawn).encode())
        self.ports: dict[str, int] = drawn["ports"]
        self.passwords: dict[str, str] = drawn["passwords"]

    def url(self, name: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[name]}"

    @property
    def prefect_api(self) -> str:
        return f"{self.url(PREFECT)}/api"

    def database(self, name: str, driver: str = "postgresql+psycopg") -> str:
        return postgres.address(self.ports[POSTGRES], self.passwords[POSTGRES], name, driver)

    def publish(self, s3_endpoint: str) -> None:
        """Write down where everything is: every later command of this home reads it."""
        access, secret = seaweed.credentials(self.home)
        values = {
            "DATABASE_URL": self.database("deciduous"),
            "S3_ENDPOINT": s3_endpoint,
            "S3_ACCESS_KEY": access,
            "S3_SECRET_KEY": secret,
            "MLFLOW_TRACKING_URI": self.url(MLFLOW),
            "MLFLOW_DATABASE_URL": self.database("mlflow"),
            "MLFLOW_USERNAME": LOGIN,
            "MLFLOW_PASSWORD": self.passwords[MLFLOW],
        }
        lines = "".join(f"DECIDUOUS_{name}='{value}'\n" for name, value in values.items())
        write_private(served_file(self.home), lines.encode())
        settings.cache_clear()

    def start_postgres(self) -> Service:
        port, password = self.ports[POSTGRES], self.passwords[POSTGRES]
        child = postgres.start(self.home / POSTGRES, port, password, log_file(POSTGRES))
        for name in DATABASES:
            postgres.ensure_database(port, password, name)
        return Service(POSTGRES, child, f"postgresql://{LOOPBACK}:{port}", "")

    def start_mlflow(self) -> Service:
        login = self.home / "mlflow-auth.ini"
        fields = {
            "default_permission": "READ",
            "database_uri": self.database("mlflow-auth"),
            "admin_username": LOGIN,
            "admin_password": self.passwords[MLFLOW],
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
            "auth_cache_ttl_seconds": "60",  # else each request hashes the password anew
        }
        lines = "".join(f"{name} = {value.replace('%', '%%')}\n" for name, value in fields.items())
        write_private(login, f"[mlflow]\n{lines}".encode())
        environment = {
            **os.environ,
            **mlflow_environment(),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes and 2 GB for jobs we lack
            "MLFLOW_AUTH_CONFIG_PATH": str(login),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.passwords["session"],
            "MLFLOW_BACKEND_STORE_URI": self.database("mlflow"),
        }
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            environment.pop(name, None)
        command = ["mlflow", "server", "--host", LOOPBACK, "--port", str(self.ports[MLFLOW]), "--workers", "1"]
        command += ["--app-name", "basic-auth", "--serve-artifacts"]
        command += ["--artifacts-destination", f"s3://{settings().artifact_bucket}/mlflow"]
        return Service(
            MLFLOW, self._spawn(MLFLOW, command, environment), self.url(MLFLOW), f"{self.url(MLFLOW)}/health"
        )

    def start_prefect(self) -> Service:
        environment = {
            **os.environ,
            **prefect_environment(),
            "PREFECT_API_DATABASE_CONNECTION_URL": self.database("prefect", "postgresql+asyncpg"),
            "PREFECT_SERVER_API_HOST": LOOPBACK,
            "PREFECT_SERVER_API_PORT": str(self.ports[PREFECT]),
        }
        command = ["prefect", "server", "start", "--host", LOOPBACK, "--port", str(self.ports[PREFECT])]
        child = self._spawn(PREFECT, command, environment)
        return Service(PREFECT, child, self.url(PREFECT), f"{self.prefect_api}/health")

    def start_worker(self, pool: str) -> Service:
        environment = {**workers.worker_environment(), "PREFECT_API_URL": self.prefect_api}
        child = spawn(workers.worker_command(pool), log_file(f"worker-{pool}"), environment)
        return Service(f"worker-{pool}", child, f"{self.prefect_api}/work_pools/{pool}", "")

    def _spawn(self, name: str, module: list[str], environment: dict[str, str]) -> Child:
        return spawn(python_module(module), log_file(name), environment)


def _draw() -> bytes:
    passwords = {name: secrets.token_urlsafe(24) for name in (POSTGRES, MLFLOW, "session")}
    return json.dumps({"ports": _ports(), "passwords": passwords}).encode()


def _ports() -> dict[str, Any]:
    return dict(zip((POSTGRES, MLFLOW, PREFECT), free_ports(3), strict=True))
