"""A version's manifest: which blobs serve together. Neither a tensor nor, where this machine has read the manifest
before, the S3 is asked for here: a rollback need not wait for torch or boto3."""

import json
from collections.abc import Collection, Iterator
from typing import Any

from infra import database
from registry import versions
from registry.errors import StateError
from registry.records import VersionState, labels_of
from tasks import blob_cache

Manifest = dict[str, Any]


def load_manifest(stream: str, version: int) -> Manifest:
    """A version's manifest. Raises StateError for one that a ticket erased."""
    with database.transaction() as session:
        found = versions.get_version(session, stream, version)
        sha256 = versions.manifest_digest(session, stream, version)
    if found.state == VersionState.ERASED:
        raise StateError(f"version {stream}/{version} was erased by a deletion ticket; choose one that is ready")
    return load_json(found.manifest_key, sha256)


def load_json(key: str, sha256: str) -> Manifest:
    """A manifest from its blob or the local copy, checked against its digest."""
    manifest: Manifest = json.loads(blob_cache.read_manifest(key, sha256))
    return manifest


def keys_in(manifest: Manifest) -> set[str]:
    """The key of every blob that the manifest names."""
    return {blob["key"] for blob in _blobs_in(manifest)}


def digests_in(manifest: Manifest) -> set[str]:
    """The digest of every blob that the manifest names."""
    return {blob["sha256"] for blob in _blobs_in(manifest)}


def without(
    manifest: Manifest, condemned: Collection[str], shard_ids: Collection[int] = (), adapter_ids: Collection[str] = ()
) -> Manifest:
    """The manifest without these blobs, shards and adapters; an adapter goes whole where its weights do."""

    def stays(part: dict[str, Any]) -> bool:
        return part["sha256"] not in condemned

    shards = [s for s in manifest["shards"] if s["shard_id"] not in shard_ids and stays(s["statistics"])]
    adapters = [
        {**a, "statistics": [part for part in a["statistics"] if part["shard_id"] not in shard_ids and stays(part)]}
        for a in manifest["adapters"]
        if a["adapter_id"] not in adapter_ids and stays(a["weights"]) and stays(a["descriptor"])
    ]
    waiting = [w for w in manifest["waiting"] if w["adapter_id"] not in adapter_ids and stays(w["descriptor"])]
    adapters = [adapter for adapter in adapters if adapter["statistics"]]
    return {**manifest, "shards": shards, "adapters": adapters, "waiting": waiting}


def seen_by(manifest: Manifest, groups: Collection[str]) -> Manifest:
    """What of the manifest a caller of these groups is answered from: what other groups have need not be loaded."""
    mine = {
        kind: [part for part in manifest[kind] if labels_of(part["group"]) <= set(groups)]
        for kind in ("shards", "adapters", "waiting")
    }
    return {**manifest, **mine}


def _blobs_in(manifest: Manifest) -> Iterator[dict[str, Any]]:
    yield from (shard["statistics"] for shard in manifest["shards"])
    for adapter in manifest["adapters"]:
        yield from (adapter["weights"], adapter["descriptor"], *adapter["statistics"])
    yield from (look["descriptor"] for look in manifest["waiting"])
