"""The registered model with many adapters, really served, under concurrent clients; part of `benchmarks.inference`.

A home of its own: embedded S3, catalog and MLflow. Blobs, manifest and version are stored as the pipeline stores them;
`mlflow models serve` loads the version, and clients that all ask at once each send one text a request over loopback.
"""

import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import environ
from pathlib import Path
from typing import Any

import numpy as np
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from infra import database, seaweed
from infra.children import end, spawn, tail
from infra.environment import mlflow_environment
from infra.ports import LOOPBACK, free_ports
from infra.settings import settings
from registry import artifacts, catalog
from registry.adapters import put_adapter
from registry.records import Adapter, AdapterState, Shard, StoredObject
from registry.sections import AdapterOptions
from registry.stream import Stream
from tasks import blobs
from tasks.assembly import build_manifest, load_model
from tasks.backbones import open_backbone
from tasks.learning.composition import AdapterEntry
from tasks.manifests import Manifest
from tasks.opening import open_home
from tasks.registration import Change, register

NAME, GROUP = "many", "all"
CLIENTS, REQUESTS = 50, 500


@contextmanager
def home(folder: Path) -> Iterator[None]:
    """An empty home with its own S3, gone at the end."""
    environ.update({"DECIDUOUS_HOME": str(folder), "DECIDUOUS_THREADS": "1"})
    settings.cache_clear()
    try:
        open_home()
        yield
    finally:
        seaweed.stop_now(folder)


def store(backbone: Path, entries: Sequence[AdapterEntry], last: int) -> tuple[Manifest, int]:
    """Register a version with these adapters, one shard each. Returns its manifest and number."""
    stream = Stream(
        name=NAME, backbone=str(backbone), source="none", adapter=AdapterOptions(rank=16, last_layers=last)
    )  # fmt: skip
    shards = [Shard(n, f"batch-{n}", f"batch-{n}", GROUP, 24, 12, 24) for n in range(len(entries))]
    adapters = [
        Adapter(entry.adapter_id, NAME, GROUP, AdapterState.SERVING, (n,), serves=(n,))
        for n, entry in enumerate(entries)
    ]
    with database.transaction() as session:
        catalog.save_stream(session, stream, open_backbone(stream).digest)
        for adapter in adapters:
            put_adapter(session, adapter)
    objects = [
        stored for shard, adapter, entry in zip(shards, adapters, entries, strict=True)
        for stored in _blobs_of(shard, adapter, entry)
    ]  # fmt: skip
    manifest = build_manifest(stream, 0, shards, adapters, [], objects)
    return manifest, register(stream, manifest, Change("batch:benchmark", "a benchmark"), measured=False).version


def _blobs_of(shard: Shard, adapter: Adapter, entry: AdapterEntry) -> list[StoredObject]:
    parts = [
        (shard.node, "statistics", entry.frozen[0].to_tensors()),
        (adapter.node, "weights", entry.weights),
        (adapter.node, "descriptor", entry.descriptor.to_tensors()),
        (adapter.node, f"statistics:{shard.shard_id}", entry.statistics[0].to_tensors()),
    ]
    return [
        blobs.save_bytes(blobs.prefix(NAME, GROUP), owner, kind, artifacts.encode_tensors(tensors))
        for owner, kind, tensors in parts
    ]


def load_cold(manifest: Manifest) -> float:
    """Seconds to load the model from S3, nothing of it on the local disk."""
    shutil.rmtree(settings().home / "blobs", ignore_errors=True)
    start = time.perf_counter()
    load_model(manifest)
    return time.perf_counter() - start


@contextmanager
def serving(model: str, log: Path) -> Iterator[str]:
    """The address of `mlflow models serve` for the model; a RuntimeError with its last words when it ends instead."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    found = f"{Path(sys.executable).parent}:{environ['PATH']}"  # MLflow starts uvicorn by its bare name
    environment = {**environ, **mlflow_environment(), "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": found}
    child = spawn([*command, "--host", LOOPBACK, "--port", str(port)], log, environment)
    address = f"http://{LOOPBACK}:{port}"
    waiting = Retrying(stop=stop_after_delay(240), wait=wait_fixed(0.2), retry=retry_if_exception_type(OSError))

    def ping() -> None:
        if not child.is_alive():
            raise RuntimeError(tail(log))
        urllib.request.urlopen(f"{address}/ping", timeout=5).close()

    try:
        waiting(ping)
        yield address
    finally:
        end(child, 5)


def ask(address: str, inputs: Sequence[str], **params: str) -> list[dict[str, Any]]:
    """The answers, a row per input. Raises HTTPError where the server refuses."""
    body = json.dumps({"inputs": list(inputs), "params": params}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        answers: list[dict[str, Any]] = json.load(response)["predictions"]
    return answers


def under_load(
    address: str, texts: Sequence[str], check: Callable[[str, list[dict[str, Any]]], bool]
) -> dict[str, Any]:
    """Latencies of one text a request, all clients at once; an answer that `check` refuses is an error."""

    def timed(number: int) -> tuple[float, bool]:
        text = texts[number % len(texts)]
        start = time.perf_counter()
        try:
            good = check(text, ask(address, [text]))
        except (urllib.error.URLError, OSError, ValueError, KeyError):
            good = False
        return (time.perf_counter() - start) * 1e3, good

    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        found = list(clients.map(timed, range(REQUESTS)))
    seconds = time.perf_counter() - start
    p50, p99 = np.percentile([ms for ms, _ in found], [50, 99])
    return {
        "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1), "errors": sum(not good for _, good in found),
        "clients": CLIENTS, "requests": REQUESTS, "requests_per_second": round(REQUESTS / seconds, 1),
    }  # fmt: skip


def measure(
    folder: Path, backbone: Path, entries: Sequence[AdapterEntry], last: int, texts: Sequence[str]
) -> dict[str, Any]:
    """What a caller sees of the served model. Every text is asked once alone first, and has to get the same answer in
    company: the first visit of an adapter solves its heads, which is told apart."""
    with home(folder / "home"):
        manifest, version = store(backbone, entries, last)
        cold = load_cold(manifest)
        with serving(f"models:/{NAME}/{version}", folder / "serve.log") as address:
            start = time.perf_counter()
            alone = {text: ask(address, [text]) for text in texts}
            first = time.perf_counter() - start
            found = under_load(address, texts, lambda text, answers: answers == alone[text])
    seen = {name for (answer,) in alone.values() for name in answer["adapters"].split(",") if name}
    return {**found, "adapters_visited": len(seen), "cold_load_s": round(cold, 2), "first_visits_s": round(first, 2)}
