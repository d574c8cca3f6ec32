"""Tensors of the artifact bucket on the local disk, mapped into memory: the K-th adapter loads as the first did.

A file is named by its digest, checked on every read, and dropped when the blob is purged or the limit is reached. It
holds what the bucket holds: no raw input, since rows are read past this cache.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from infra import storage
from infra.settings import settings
from registry import artifacts
from tasks import disk_cache

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(key: str, sha256: str) -> "dict[str, Tensor]":
    """The blob's tensors, from the local file where there is one; TamperedBlobError when S3's bytes are not those."""
    from safetensors.torch import load_file  # noqa: PLC0415  torch takes seconds, a rollback needs none of it

    try:
        return load_file(_fetched(key, sha256))
    except FileNotFoundError:  # another process made room, or followed a deletion, in between
        return load_file(_fetched(key, sha256))


def _fetched(key: str, sha256: str) -> Path:
    path = _path(sha256)
    if not _holds(path, sha256):
        data = artifacts.get_blob(storage.s3(), settings().artifact_bucket, key, sha256)
        artifacts.decode_tensors(data, key)  # or say what is wrong with it
        disk_cache.write_whole(path, data)
    else:
        os.utime(path)
    return path


def forget(keys: Iterable[str]) -> int:
    """Drop the local copies of these blobs; returns how many there were."""
    gone = 0
    for key in keys:
        path = _path(Path(key).name.split(".")[0])
        gone += path.exists()
        for each in path.parent.glob(f"{path.name}*"):  # also what a killed process left half written
            each.unlink(missing_ok=True)
    return gone


def digests() -> set[str]:
    """Digests of the blobs that have a local copy."""
    return {path.stem for path in _root().glob("*/*.safetensors")}


def retain(digests: Iterable[str]) -> int:
    """Drop every local copy but these: a server that moved to a new version keeps nothing of the old one."""
    wanted = {f"{digest}.safetensors" for digest in digests}
    dead = [path for path in _root().glob("*/*.safetensors") if path.name not in wanted]
    for path in dead:
        path.unlink(missing_ok=True)
    return len(dead)


def trim() -> None:
    """Drop the least recently used copies until the rest fits the limit."""
    disk_cache.trim(_root().glob("*/*"), settings().blob_cache_bytes)


def _root() -> Path:
    return settings().home / "blobs"


def _path(sha256: str) -> Path:
    return _root() / sha256[:2] / f"{sha256}.safetensors"


def _holds(path: Path, sha256: str) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
