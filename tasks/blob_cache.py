"""Tensors and manifests of the artifact bucket on the local disk: the K-th adapter loads as the first did, mapped into
memory, and a rollback asks no S3.

A file is named by its digest, checked on every read, and dropped when the blob is purged or the limit is reached. It
holds what the bucket holds: no raw input, since rows are read past this cache.
"""

# ruff: noqa: PLC0415  torch and boto3 take long to import, and a rollback needs none of them

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from infra.settings import settings
from registry.errors import StorageUnavailableError
from tasks import disk_cache

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, MANIFEST = ".safetensors", ".json"


def read_tensors(key: str, sha256: str) -> "dict[str, Tensor]":
    """The blob's tensors, from the local file where there is one; TamperedBlobError when S3's bytes are not those."""
    from safetensors.torch import load_file

    try:
        return load_file(_fetched(key, sha256))
    except FileNotFoundError:  # another process made room, or followed a deletion, in between
        return load_file(_fetched(key, sha256))


def read_manifest(key: str, sha256: str) -> bytes:
    """The manifest's bytes, in the same way; a disk that takes no copy keeps nobody from reading it."""
    path = _path(sha256, MANIFEST)
    with suppress(OSError):  # it went meanwhile, or its disk is read-only
        if _holds(path, sha256):
            return _used(path).read_bytes()
    data = _get(key, sha256)
    with suppress(StorageUnavailableError):
        disk_cache.write_whole(path, data)
    return data


def _fetched(key: str, sha256: str) -> Path:
    from registry.artifacts import decode_tensors

    path = _path(sha256, WEIGHTS)
    if not _holds(path, sha256):
        data = _get(key, sha256)
        decode_tensors(data, key)  # or say what is wrong with it
        disk_cache.write_whole(path, data)
    return _used(path)


def _get(key: str, sha256: str) -> bytes:
    from infra import storage
    from registry.artifacts import get_blob

    return get_blob(storage.s3(), settings().artifact_bucket, key, sha256)


def _used(path: Path) -> Path:
    os.utime(path)
    return path


def forget(keys: Iterable[str]) -> int:
    """Drop the local copies of these blobs; returns how many there were."""
    gone = 0
    for key in keys:
        path = _path(Path(key).name.split(".")[0])
        copies = list(path.parent.glob(f"{path.name}.*"))  # also what a killed process left half written
        gone += any(copy.suffix in (WEIGHTS, MANIFEST) for copy in copies)
        for copy in copies:
            copy.unlink(missing_ok=True)
    return gone


def digests() -> set[str]:
    """Digests of the blobs that have a local copy."""
    return {path.stem for path in _copies()}


def retain(digests: Iterable[str], *kinds: str) -> int:
    """Drop every local copy but these, of all kinds or of those named; returns how many went."""
    wanted = set(digests)
    dead = [path for path in _copies(*kinds) if path.stem not in wanted]
    for path in dead:
        path.unlink(missing_ok=True)
    return len(dead)


def trim() -> None:
    """Drop the least recently used copies until the rest fits the limit."""
    disk_cache.trim(_root().glob("*/*"), settings().blob_cache_bytes)


def _copies(*kinds: str) -> list[Path]:
    return [path for kind in kinds or (WEIGHTS, MANIFEST) for path in _root().glob(f"*/*{kind}")]


def _root() -> Path:
    return settings().home / "blobs"


def _path(sha256: str, kind: str = "") -> Path:
    return _root() / sha256[:2] / f"{sha256}{kind}"


def _holds(path: Path, sha256: str) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
