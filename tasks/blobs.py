"""Blobs of the artifact bucket with their catalog rows: written first, named after, so nothing is half-registered."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from infra import database, storage
from infra.settings import settings
from registry import artifacts, ownership
from registry.canonical import canonical_json
from registry.records import StoredObject
from tasks import blob_cache

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]


class Drafts:
    """Blobs that are read like stored ones, and are stored only where what they are for is kept."""

    def __init__(self) -> None:
        self.objects: list[StoredObject] = []
        self._held = dict[str, tuple[str, bytes]]()

    def hold(self, prefix: str, owner: str, kind: str, tensors: Tensors) -> None:
        data = artifacts.encode_tensors(tensors)
        blob = artifacts.name_blob(prefix, data)
        self._held[blob.key] = prefix, data
        self.objects.append(StoredObject(blob.key, blob.sha256, blob.size, kind, owner))

    def read_tensors(self, key: str, sha256: str) -> Tensors:
        if key not in self._held:
            return blob_cache.read_tensors(key, sha256)
        return artifacts.decode_tensors(self._held[key][1], key)

    def store(self) -> None:
        """Write them; the caller names `objects` in the catalog."""
        for prefix, data in self._held.values():
            artifacts.put_blob(storage.s3(), settings().artifact_bucket, prefix, data)


def stream_prefix(stream: str) -> str:
    return f"streams/{stream}/"


def prefix(stream: str, group: str) -> str:
    """Where a group's blobs lie: one prefix per group, so that a bucket policy can keep groups apart."""
    return f"{stream_prefix(stream)}groups/{quote(group, safe='')}"


def shared_prefix(stream: str) -> str:
    """Where blobs without any record's content lie: manifests, certificates, quarantine lists."""
    return f"{stream_prefix(stream)}shared"


def store(prefix: str, owner: str, kind: str, data: bytes) -> StoredObject:
    """Write the bytes; the caller names them in the catalog within a transaction of its own."""
    blob = artifacts.put_blob(storage.s3(), settings().artifact_bucket, prefix, data)
    return StoredObject(blob.key, blob.sha256, blob.size, kind, owner)


def store_tensors(prefix: str, owner: str, kind: str, tensors: Tensors) -> StoredObject:
    return store(prefix, owner, kind, artifacts.encode_tensors(tensors))


def save_bytes(prefix: str, owner: str, kind: str, data: bytes) -> StoredObject:
    stored = store(prefix, owner, kind, data)
    with database.transaction() as session:
        ownership.put_object(session, stored)
    return stored


def save_tensors(prefix: str, owner: str, kind: str, tensors: Tensors) -> StoredObject:
    return save_bytes(prefix, owner, kind, artifacts.encode_tensors(tensors))


def json_bytes(content: Any) -> bytes:
    return canonical_json(content)


def find(owner: str, kind: str) -> StoredObject | None:
    with database.transaction() as session:
        return ownership.find_object(session, owner, kind)


def of_owner(owner: str) -> list[StoredObject]:
    with database.transaction() as session:
        return ownership.objects_of(session, [owner])


def get(owner: str, kind: str) -> StoredObject:
    with database.transaction() as session:
        return ownership.get_object(session, owner, kind)


def read(key: str, sha256: str) -> bytes:
    """The blob's bytes; raises TamperedBlobError when they do not match their digest."""
    return artifacts.get_blob(storage.s3(), settings().artifact_bucket, key, sha256)


def load_bytes(owner: str, kind: str) -> bytes:
    stored = get(owner, kind)
    return read(stored.key, stored.sha256)


def load_tensors(owner: str, kind: str) -> Tensors:
    stored = get(owner, kind)
    return read_tensors(stored.key, stored.sha256)


def read_tensors(key: str, sha256: str) -> Tensors:
    return artifacts.decode_tensors(read(key, sha256), key)


def purge_unowned(keys: Iterable[str]) -> list[tuple[str, str]]:
    """Remove every version of those keys that no node owns any more; returns (key, version) pairs."""
    wanted = set(keys)
    with database.transaction() as session:
        free = sorted(wanted - ownership.owned_keys(session, wanted))
    return purge(free)


def purge(keys: Sequence[str]) -> list[tuple[str, str]]:
    """Remove every version of these keys, and this machine's local copies; returns (key, version) pairs."""
    blob_cache.forget(keys)
    return artifacts.purge_keys(storage.s3(), settings().artifact_bucket, keys)
