"""The local stack: S3, Prefect server and MLflow server over the embedded state of one home."""

import os
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from infra import seaweed, storage
from infra.children import end, spawn, tail
from infra.environment import mlflow_environment, prefect_environment
from infra.errors import StartError
from infra.files import locked
from infra.orchestration import PREFECT
from infra.ports import LOOPBACK, free_ports
from infra.services import Service, forget_services, load_services, save_services
from infra.settings import settings

MLFLOW = "mlflow"
S3 = "s3"
START_SECONDS = 120  # a first start creates and migrates two databases
STOP_SECONDS = 10


@dataclass(frozen=True)
class ServiceStatus:
    """Whether a server of the stack runs, and where."""

    name: str
    url: str
    pid: int | None
    is_running: bool


def up(say: Callable[[str], None] = lambda _: None) -> list[ServiceStatus]:
    """Start what does not run yet and wait until all of it answers; `say` is told of each step.

    A server that the settings place elsewhere is left alone. Raises StartError with the end of the log, after
    ending what this call started."""
    home = settings().home
    # the second lock: the MLflow server and a flow must not both create its tables
    with locked(home / "stack.lock"), locked(home / "mlflow.lock"):
        running = [service for service in load_services(home) if service.child.is_alive()]
        if settings().s3_endpoint is None:
            say("starting S3")
            seaweed.hold(home)
        storage.ensure_buckets()
        known = {service.name for service in running}
        started = [start() for name, start in _starters().items() if name not in known]
        save_services(home, [*running, *started])
        try:
            for service in started:
                say(f"waiting for {service.name} at {service.url}")
                wait_until_healthy(service)
        except StartError:
            for service in started:
                end(service.child, STOP_SECONDS)
            save_services(home, running)
            if not running:
                seaweed.release(home)
            raise
    return stack_status()


def down() -> list[str]:
    """End what `up` started, and S3 when no other process uses it; returns the names of what ended."""
    home = settings().home
    with locked(home / "stack.lock"):
        # in reverse: workers before the servers that they talk to, databases last
        ended = [service.name for service in reversed(load_services(home)) if end(service.child, STOP_SECONDS)]
        forget_services(home)
        s3 = seaweed.find(home)
        seaweed.release(home)
        if s3 is not None and not s3.child.is_alive():
            ended.append(S3)
    return ended


def stack_status() -> list[ServiceStatus]:
    """Every server this home uses: its own, and those the settings place elsewhere (pid unknown)."""
    config = settings()
    found = {service.name: service for service in load_services(config.home)}
    answer = [_s3_status()]
    for name in dict.fromkeys((PREFECT, MLFLOW, *found)):
        service = found.get(name)
        if service is not None:
            alive = service.child.is_alive()
            answer.append(ServiceStatus(name, service.url, service.child.pid if alive else None, alive))
        else:
            elsewhere = _elsewhere(name)
            answer.append(ServiceStatus(name, elsewhere, None, bool(elsewhere) and _answers(elsewhere)))
    return answer


def _starters() -> dict[str, Callable[[], Service]]:
    starters = {PREFECT: _start_prefect, MLFLOW: start_mlflow}
    return {name: start for name, start in starters.items() if not _elsewhere(name)}


def _start_prefect() -> Service:
    (port,) = free_ports(1)
    url = f"http://{LOOPBACK}:{port}"
    environment = {
        **os.environ,
        **prefect_environment(),
        # without these two the UI asks port 4200
        "PREFECT_SERVER_API_HOST": LOOPBACK,
        "PREFECT_SERVER_API_PORT": str(port),
    }
    command = python_module(["prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)])
    return Service(PREFECT, spawn(command, log_file(PREFECT), environment), url, f"{url}/api/health")


def start_mlflow() -> Service:
    """MLflow's server over this home's state, started and not waited for."""
    (port,) = free_ports(1)
    url = f"http://{LOOPBACK}:{port}"
    location = f"s3://{settings().artifact_bucket}/mlflow"
    store = ["--backend-store-uri", settings().mlflow_tracking_uri, "--default-artifact-root", location]
    command = python_module(["mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1", *store])
    environment = {**os.environ, **mlflow_environment()}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight more processes and 2 GB for jobs we lack
    del environment["MLFLOW_TRACKING_URI"]
    return Service(MLFLOW, spawn(command, log_file(MLFLOW), environment), url, f"{url}/health")


def python_module(command: Sequence[str]) -> list[str]:
    """A program of this Python's environment, whatever the PATH says."""
    return [sys.executable, "-m", *command]


def log_file(name: str) -> Path:
    return settings().home / "logs" / f"{name}.log"


def wait_until_healthy(service: Service) -> None:
    """Raises StartError with the end of its log."""
    waiting = Retrying(
        stop=stop_after_delay(START_SECONDS),
        wait=wait_fixed(0.1),
        retry=retry_if_result(lambda state: state == "starting"),
        retry_error_callback=lambda _: f"did not answer within {START_SECONDS} s",
    )
    state = waiting(lambda: _state(service))
    if state != "up":
        log = log_file(service.name)
        raise StartError(f"{service.name} at {service.url} {state}; the end of {log}:\n{tail(log)}")


def _state(service: Service) -> str:
    if not service.child.is_alive():
        return "ended while it started"
    return "up" if _answers(service.health) else "starting"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except HTTPError as refusal:
        return refusal.code < 500  # an S3 refuses an unsigned request, but it is there
    except OSError:
        return False


def _elsewhere(name: str) -> str:
    """Address of a server that the user runs; empty when this home has to run its own."""
    if name == MLFLOW:
        uri = settings().mlflow_tracking_uri
        return uri if uri.startswith(("http:", "https:")) else ""
    return os.environ.get("PREFECT_API_URL", "")


def _s3_status() -> ServiceStatus:
    given, server = settings().s3_endpoint, seaweed.find(settings().home)
    if server is not None and storage.is_own():
        return ServiceStatus(S3, server.endpoint, server.child.pid, True)
    return ServiceStatus(S3, given or "", None, given is not None and _answers(given))
