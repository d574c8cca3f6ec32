"""Blobs that nothing live names: neither a node of the catalog nor a version that could serve."""

from dataclasses import dataclass
from typing import Any

from infra import database, storage
from infra.settings import settings
from registry import artifacts, ownership, versions
from registry.records import VersionState
from tasks import blobs
from tasks.exclusion import alone, naming
from tasks.manifests import keys_in, load_json
from tasks.orphans import orphans_of, purge_run


@dataclass(frozen=True, slots=True)
class Garbage:
    keys: tuple[str, ...]
    size: int
    """Bytes of all their versions."""
    references: int
    """How often the catalog and the manifests of READY versions name a blob that stays."""
    live: int


def find_garbage(stream: str) -> Garbage:
    """Keys under the stream's prefix that no node owns and no READY version's manifest names."""
    bucket = settings().artifact_bucket
    with database.transaction() as session:
        ready = versions.versions(session, stream, VersionState.READY)
        manifests = [(v.manifest_key, versions.manifest_digest(session, stream, v.version)) for v in ready]
        owned = ownership.all_keys(session, blobs.stream_prefix(stream))
    named = [owned, {key for key, _ in manifests}, *(keys_in(load_json(*manifest)) for manifest in manifests)]
    live = set().union(*named)
    stored = artifacts.list_versions(storage.s3(), bucket, blobs.stream_prefix(stream))
    dead = {version.key for version in stored} - live
    size = sum(version.size for version in stored if version.key in dead)
    return Garbage(tuple(sorted(dead)), size, sum(map(len, named)), len(live))


def collect_garbage(stream: str) -> list[tuple[str, str]]:
    """Remove every version of every dead blob; returns (key, version) pairs. The caller holds the stream: a blob is
    written before it is named."""
    return blobs.purge(find_garbage(stream).keys)


def clean_up(stream: str, dry_run: bool) -> dict[str, Any]:
    """Remove dead blobs, uploads that were never completed and runs in MLflow that a crash left, and say what that was.
    This machine's caches follow the deletions that were worked elsewhere.

    Raises HeldError while another process works on the stream.
    """
    if dry_run:
        found, uploads, orphans = find_garbage(stream), _unfinished(stream), orphans_of(stream, only_ours=True)
    else:
        with alone(stream, wait_seconds=0), naming(stream):
            found, uploads, orphans = find_garbage(stream), _unfinished(stream), orphans_of(stream, only_ours=True)
            blobs.purge(found.keys)
            artifacts.abort_uploads(storage.s3(), settings().artifact_bucket, uploads)
            for run_id in orphans:
                purge_run(stream, run_id)
            _follow_deletions(stream)
    return {
        "stream": stream,
        "live_blobs": found.live,
        "references": found.references,
        "dead_blobs": len(found.keys),
        "dead_bytes": found.size,
        "unfinished_uploads": len(uploads),
        "orphan_runs": len(orphans),
    }


def _follow_deletions(stream: str) -> None:
    from tasks.local_copies import follow_deletions  # noqa: PLC0415  torch takes seconds, a rollback needs none of it

    follow_deletions(stream)


def _unfinished(stream: str) -> list[artifacts.Upload]:
    return artifacts.list_uploads(storage.s3(), settings().artifact_bucket, blobs.stream_prefix(stream))
