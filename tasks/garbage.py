"""Blobs that nothing live names: neither a node of the catalog nor a version that could serve."""

from dataclasses import dataclass

from infra import database, storage
from infra.settings import settings
from registry import artifacts, catalog, versions
from registry.records import VersionState
from tasks import blobs
from tasks.assembly import keys_in, load_json


@dataclass(frozen=True, slots=True)
class Garbage:
    keys: tuple[str, ...]
    size: int


def find_garbage(stream: str) -> Garbage:
    """Keys under the stream's prefix that no node owns and no READY version's manifest names."""
    bucket = settings().artifact_bucket
    with database.transaction() as session:
        ready = versions.versions(session, stream, VersionState.READY)
        manifests = [(v.manifest_key, versions.manifest_digest(session, stream, v.version)) for v in ready]
        owned = catalog.all_keys(session, blobs.stream_prefix(stream))
    live = owned | {key for key, _ in manifests}
    live |= {key for manifest in manifests for key in keys_in(load_json(*manifest))}
    stored = artifacts.list_versions(storage.s3(), bucket, blobs.stream_prefix(stream))
    stored_keys = {version.key: version.size for version in stored}
    dead = sorted(set(stored_keys) - live)
    return Garbage(tuple(dead), sum(stored_keys[key] for key in dead))


def collect_garbage(stream: str) -> list[tuple[str, str]]:
    """Remove every version of every dead blob; returns (key, version) pairs."""
    return blobs.purge(find_garbage(stream).keys)
