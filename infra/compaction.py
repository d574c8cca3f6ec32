"""Make the embedded S3 forget on disk: a deleted object's bytes stay in a volume file until it is rewritten."""

import json
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from infra import seaweed
from infra.errors import UnreachableError
from infra.ports import LOOPBACK
from infra.seaweed import PROBE_BUCKET, Server

LIMIT_SECONDS = 60
SENTINEL_BYTES = 4096


def compact(home: Path) -> int:
    """Rewrite every volume that holds deleted bytes; returns how many bytes that were.

    Chunks are deleted in the background in the order of the requests, so a sentinel is deleted last and awaited.
    Names and metadata of objects stay in the filer's log for a while: nothing personal belongs there."""
    server = seaweed.connect(home)
    before = sum(_garbage(server).values())
    _rewrite(server)
    client = seaweed.client(home, server)
    client.put_object(Bucket=PROBE_BUCKET, Key="sentinel", Body=os.urandom(SENTINEL_BYTES))
    client.delete_object(Bucket=PROBE_BUCKET, Key="sentinel")
    _await(lambda: _garbage(server).get(PROBE_BUCKET, 0) >= SENTINEL_BYTES, server)
    late = sum(_garbage(server).values()) - SENTINEL_BYTES
    _await(lambda: _rewrite(server) == 0, server)
    return before + late


def _rewrite(server: Server) -> int:
    """Ask for a rewrite of volumes with any garbage; bytes of garbage that are left after it."""
    _get(f"{server.master}/vol/vacuum?garbageThreshold=0.0000000001")
    return sum(_garbage(server).values())


def _garbage(server: Server) -> dict[str, int]:
    """Deleted bytes by bucket."""
    found: dict[str, int] = {}
    for volume in json.loads(_get(f"http://{LOOPBACK}:{server.ports[1]}/status"))["Volumes"]:
        found[volume["Collection"]] = found.get(volume["Collection"], 0) + volume["DeletedByteCount"]
    return found


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=LIMIT_SECONDS) as answer:
        content: bytes = answer.read()
    return content


def _await(reached: Callable[[], bool], server: Server) -> None:
    waiting = Retrying(
        stop=stop_after_delay(LIMIT_SECONDS), wait=wait_fixed(0.05), retry=retry_if_result(lambda done: not done)
    )
    try:
        waiting(reached)
    except (RetryError, OSError) as error:
        remedy = f"its volumes still held deleted bytes after {LIMIT_SECONDS} s; run the command again"
        raise UnreachableError("SeaweedFS", server.master, remedy) from error
