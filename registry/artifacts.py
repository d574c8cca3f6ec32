"""Content-addressed blobs in a versioned S3 bucket: put, get verified, purge every version, sweep for bytes.

The caller gives the client and the bucket. A key ends in the SHA-256 of its bytes, so a second put of the same
bytes writes nothing, and nothing is ever overwritten."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from io import BytesIO
from typing import TYPE_CHECKING, Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from registry.canonical import canonical_json
from registry.errors import (
    BadWeightsError,
    MissingObjectError,
    PurgeError,
    StorageRefusedError,
    StorageUnavailableError,
    TamperedBlobError,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from torch import Tensor

LARGE = 32 << 20  # bytes from which on a blob goes in parts
PART = 8 << 20
CHUNK = 1 << 20  # bytes read at a time by the sweep
DELETE_LIMIT = 1000  # keys that S3 takes in one call
MISSING = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "404"}
CONFLICT = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
PASSING = {"RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "TooManyRequests", "408", "409", "429"}
"""What S3 answers as the caller's mistake, and takes a little later."""


@dataclass(frozen=True)
class StoredBlob:
    """Where bytes lie and what they must hash to."""

    key: str
    sha256: str
    size: int


@dataclass(frozen=True)
class ObjectVersion:
    """One version of an object, current or not, or a delete marker."""

    key: str
    version_id: str
    size: int
    is_delete_marker: bool


@dataclass(frozen=True)
class Upload:
    """A multipart upload that was never completed: no listing of versions shows its parts."""

    key: str
    upload_id: str


@dataclass(frozen=True)
class SweepHit:
    """A marker found in an object version; `place` is key, metadata, tags or content."""

    key: str
    version_id: str
    marker: int
    place: str


def put_blob(s3: "S3Client", bucket: str, prefix: str, data: bytes) -> StoredBlob:
    """Store the bytes under PREFIX/SHA256, once; large ones in parts, several at a time."""
    blob = name_blob(prefix, data)
    with named(s3, bucket, blob.key):
        if len(data) >= LARGE:
            _put_parts(s3, bucket, blob.key, data)
        else:
            _put_whole(s3, bucket, blob.key, data)
    return blob


def name_blob(prefix: str, data: bytes) -> StoredBlob:
    """How the bytes are called once they are stored."""
    sha256 = hashlib.sha256(data).hexdigest()
    return StoredBlob(f"{prefix.rstrip('/')}/{sha256}", sha256, len(data))


def _put_whole(s3: "S3Client", bucket: str, key: str, data: bytes) -> None:
    try:
        s3.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        if _code(error) not in CONFLICT:
            raise
        # there already, or a twin is putting the same bytes: the answer is the same once it is whole
        s3.get_waiter("object_exists").wait(Bucket=bucket, Key=key, WaiterConfig={"Delay": 1, "MaxAttempts": 5})


def _put_parts(s3: "S3Client", bucket: str, key: str, data: bytes) -> None:
    """Parts cannot be put on condition, so look first; a twin at the same moment adds a version of the same bytes."""
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if _code(error) not in MISSING:
            raise
        parts = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)
        s3.upload_fileobj(BytesIO(data), bucket, key, Config=parts)


def replace_object(s3: "S3Client", bucket: str, key: str, etag: str, data: bytes) -> str | None:
    """Put bytes in the place of the object that has this ETag; returns theirs, None where another is there or none."""
    with named(s3, bucket, key):
        try:
            return s3.put_object(Bucket=bucket, Key=key, Body=data, IfMatch=f'"{etag}"')["ETag"]
        except ClientError as error:
            if _code(error) not in CONFLICT | MISSING:
                raise
    return None


def get_blob(s3: "S3Client", bucket: str, key: str, sha256: str) -> bytes:
    """The bytes. Raises MissingObjectError, or TamperedBlobError when they do not match the digest."""
    with named(s3, bucket, key):
        data: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise TamperedBlobError(
            f"s3://{bucket}/{key} hashes to {found}, the catalog says {sha256}; restore the object from a backup"
        )
    return data


def get_version(s3: "S3Client", bucket: str, version: ObjectVersion) -> bytes:
    """The bytes of one version of an object whose key says nothing of them."""
    with named(s3, bucket, version.key):
        return s3.get_object(Bucket=bucket, Key=version.key, VersionId=version.version_id)["Body"].read()


def decode_tensors(data: bytes, key: str) -> "dict[str, Tensor]":
    """Tensors by name, on the CPU. Raises BadWeightsError for anything but safetensors: nothing is unpickled."""
    from safetensors import SafetensorError  # noqa: PLC0415 - torch takes seconds, most verbs need no tensor
    from safetensors.torch import load  # noqa: PLC0415

    try:
        return dict(load(data))
    except SafetensorError as error:
        raise BadWeightsError(
            f"blob {key} is no safetensors file ({error}) and is not opened otherwise; withdraw what names it with "
            "`deciduous rollback`, and train it again"
        ) from None


def encode_tensors(tensors: "Mapping[str, Tensor]") -> bytes:
    """Safetensors bytes that depend on names, dtypes, shapes and values alone."""
    import torch  # noqa: PLC0415 - as in decode_tensors
    from safetensors.torch import save  # noqa: PLC0415

    # the format wants contiguous tensors that share no memory
    whole = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
    return bytes(save(dict(sorted(whole.items()))))


def list_versions(s3: "S3Client", bucket: str, prefix: str = "") -> list[ObjectVersion]:
    """Every version and delete marker whose key starts with `prefix`."""
    found = []
    with named(s3, bucket, prefix):
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
            for row in page.get("Versions", []):
                found.append(ObjectVersion(row["Key"], row["VersionId"], row["Size"], False))
            for marker in page.get("DeleteMarkers", []):
                found.append(ObjectVersion(marker["Key"], marker["VersionId"], 0, True))
    return found


def list_current(s3: "S3Client", bucket: str, prefix: str = "") -> list[ObjectVersion]:
    """The version that a reader gets of every object whose key starts with `prefix`."""
    with named(s3, bucket, prefix):
        pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix)
        rows = [row for page in pages for row in page.get("Versions", []) if row["IsLatest"]]
    return [ObjectVersion(row["Key"], row["VersionId"], row["Size"], False) for row in rows]


def list_uploads(s3: "S3Client", bucket: str, prefix: str = "") -> list[Upload]:
    """Unfinished multipart uploads whose key starts with `prefix`."""
    with named(s3, bucket, prefix):
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        return [Upload(row["Key"], row["UploadId"]) for page in pages for row in page.get("Uploads", [])]


def abort_uploads(s3: "S3Client", bucket: str, uploads: Sequence[Upload]) -> None:
    """End uploads that were never completed; objects of the same keys stay."""
    for upload in uploads:
        with named(s3, bucket, upload.key):
            s3.abort_multipart_upload(Bucket=bucket, Key=upload.key, UploadId=upload.upload_id)


def purge_keys(s3: "S3Client", bucket: str, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Delete every version, delete marker and unfinished upload of these keys; a second call finds nothing.

    Returns (key, version or upload id) of what went. Raises PurgeError when the store keeps one, as it does under
    a legal hold or a retention date: then the deletion is not done."""
    gone = []
    for key in dict.fromkeys(keys):
        uploads = [upload for upload in list_uploads(s3, bucket, key) if upload.key == key]
        abort_uploads(s3, bucket, uploads)
        versions = _versions_of(s3, bucket, key)
        for start in range(0, len(versions), DELETE_LIMIT):
            delete_versions(s3, bucket, versions[start : start + DELETE_LIMIT])
        if left := _versions_of(s3, bucket, key):
            raise PurgeError(f"s3://{bucket}/{key} still has {len(left)} versions after their deletion; purge it again")
        gone += [(key, upload.upload_id) for upload in uploads] + [(key, version.version_id) for version in versions]
    return gone


def purge_prefix(s3: "S3Client", bucket: str, prefix: str) -> list[tuple[str, str]]:
    """Purge every key under the prefix, which must not be empty."""
    if not prefix:
        raise ValueError("an empty prefix would purge the bucket")
    keys = [version.key for version in list_versions(s3, bucket, prefix)]
    keys += [upload.key for upload in list_uploads(s3, bucket, prefix)]
    return purge_keys(s3, bucket, keys)


def sweep_bytes(s3: "S3Client", bucket: str, markers: Sequence[bytes], prefix: str = "") -> list[SweepHit]:
    """Look for markers in the key, metadata, tags and content of every object version of the bucket.

    Raw bytes are compared: what lies inside a compressed container has to be swept in its compressed form. Parts of
    unfinished uploads cannot be read; `list_uploads` names them."""
    hits = []
    for version in list_versions(s3, bucket, prefix):
        for place, index in _hits_in(s3, bucket, version, markers):
            hits.append(SweepHit(version.key, version.version_id, index, place))
    return hits


def _hits_in(
    s3: "S3Client", bucket: str, version: ObjectVersion, markers: Sequence[bytes]
) -> Iterator[tuple[str, int]]:
    yield from _matches("key", version.key.encode(), markers)
    if version.is_delete_marker:
        return
    where: Any = {"Bucket": bucket, "Key": version.key, "VersionId": version.version_id}
    with named(s3, bucket, version.key):
        answer = s3.get_object(**where)
        yield from _matches("metadata", canonical_json(answer["Metadata"]), markers)
        if answer.get("TagCount"):
            yield from _matches("tags", canonical_json(s3.get_object_tagging(**where)["TagSet"]), markers)
        seen: set[int] = set()
        overlap = max(map(len, markers), default=1) - 1  # a marker may lie across two chunks
        window = b""
        for chunk in answer["Body"].iter_chunks(CHUNK):
            window = window[len(window) - min(overlap, len(window)) :] + chunk
            seen |= {index for _, index in _matches("content", window, markers)}
    yield from (("content", index) for index in sorted(seen))


def _matches(place: str, content: bytes, markers: Sequence[bytes]) -> Iterator[tuple[str, int]]:
    return ((place, index) for index, marker in enumerate(markers) if marker in content)


def _versions_of(s3: "S3Client", bucket: str, key: str) -> list[ObjectVersion]:
    return [version for version in list_versions(s3, bucket, key) if version.key == key]


def delete_versions(s3: "S3Client", bucket: str, versions: Sequence[ObjectVersion]) -> None:
    """Delete these versions, a thousand at most. Raises PurgeError where the store keeps one, and says until when."""
    if not versions:
        return
    wanted = [{"Key": version.key, "VersionId": version.version_id} for version in versions]
    with named(s3, bucket, versions[0].key):
        answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": wanted, "Quiet": True})  # type: ignore[typeddict-item]
    # S3 answers 200 and lists what it kept
    for error in answer.get("Errors", []):
        key, version_id = error.get("Key", ""), error.get("VersionId", "")
        raise PurgeError(
            f"s3://{bucket}/{key} version {version_id} was kept: {error.get('Code')} {error.get('Message', '')}; "
            f"{_lock_of(s3, bucket, key, version_id)}, then purge again"
        )


def _lock_of(s3: "S3Client", bucket: str, key: str, version_id: str) -> str:
    """What to do about a version that the store keeps."""
    try:
        head = s3.head_object(Bucket=bucket, Key=key, VersionId=version_id)
    except ClientError:
        return "lift its legal hold or retention"
    if head.get("ObjectLockLegalHoldStatus") == "ON":
        return "lift its legal hold"
    until = head.get("ObjectLockRetainUntilDate")
    if until is None:
        return "see why"
    return f"wait for the end of its retention, {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC, or lift it"


@contextmanager
def named(s3: "S3Client", bucket: str, key: str) -> Iterator[None]:
    """Turn the client's errors into ours, which name the object and say whether to try again."""
    try:
        yield
    except BotoCoreError as error:
        raise StorageUnavailableError(
            f"S3 at {s3.meta.endpoint_url} failed on s3://{bucket}/{key}: {error}; see that it runs, then run again"
        ) from error
    except ClientError as error:
        if _code(error) in MISSING:
            raise MissingObjectError(
                f"no s3://{bucket}/{key}: {_code(error)}; restore it from a backup of the bucket. What a ticket purged "
                "is in none: begin a catalog anew (docs/operations.md, Backup and restore)"
            ) from error
        if _code(error) in PASSING or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            raise StorageUnavailableError(
                f"S3 at {s3.meta.endpoint_url} failed on s3://{bucket}/{key}: {error}; run again later"
            ) from error
        raise StorageRefusedError(
            f"S3 at {s3.meta.endpoint_url} refused s3://{bucket}/{key}: {error}; mend these keys or their rights "
            "(`deciduous doctor` tries them), then run again"
        ) from error


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")
