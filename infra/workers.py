"""Work pools: their names, the templates of the jobs that they start, and what a worker's process needs to know."""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

from infra.environment import prefect_environment
from infra.settings import settings

CPU, GPU = "cpu", "gpu"
TEMPLATES = Path(__file__).with_name("pools")
ROOT = Path(__file__).resolve().parent.parent
EVERY_GPU = [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]


class PoolType(StrEnum):
    PROCESS = "process"
    DOCKER = "docker"
    KUBERNETES = "kubernetes"


def job_template(kind: PoolType, pool: str) -> dict[str, Any]:
    """The base job template of a pool; a container of the gpu pool has an image of its own, and asks for its GPUs."""
    template: dict[str, Any] = json.loads((TEMPLATES / f"{kind}.json").read_text())
    variables = template["variables"]["properties"]
    if pool == GPU and kind != PoolType.PROCESS:
        variables["image"]["default"] = "deciduous-gpu-worker"
    if pool == GPU and kind == PoolType.KUBERNETES:
        variables["gpus"]["default"] = 1
    if pool == GPU and kind == PoolType.DOCKER:
        variables["container_create_kwargs"]["default"] = {"device_requests": EVERY_GPU}
    return template


def worker_command(pool: str, limit: int | None = None) -> list[str]:
    """Prefect's own worker; it installs nothing, because the code is there."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--install-policy", "never"]
    return command if limit is None else [*command, "--limit", str(limit)]


def worker_environment() -> dict[str, str]:
    """What runs that a process worker starts inherit: this home, the code, and a short look at the queue."""
    return {
        **os.environ,
        **{name: value for name, value in prefect_environment().items() if name not in os.environ},
        "DECIDUOUS_HOME": str(settings().home),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "2"),
        # Prefect's 180 s would be silence to the automation that finds lost runs; our pools' templates say the same
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": os.environ.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30"),
    }
