"""The objects of a stream's source, in S3 or on a local disk."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.csv
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError

from infra import storage
from registry.errors import MissingObjectError, SourceError
from registry.records import Delivery

FORMATS = (".parquet", ".jsonl", ".csv")


def list_objects(source: str) -> list[tuple[str, str]]:
    """(uri, tag) of every object that the source names, in name order. Raises SourceError when none matches."""
    found = sorted(_list_s3(source) if source.startswith("s3://") else _list_local(source))
    if not found:
        raise SourceError(f"source {source!r} matches no {', '.join(FORMATS)} object; check the pattern and the bucket")
    return found


def fetch(uri: str, tag: str) -> tuple[Delivery, bytes]:
    if uri.startswith("s3://"):
        bucket, key = split_s3(uri)
        data = _read_s3(bucket, key)
    else:
        data = _read_local(Path(uri))
    return Delivery(uri=uri, digest=sha256(data).hexdigest(), size=len(data), tag=tag), data


def without_rows(data: bytes, uri: str, gone: Sequence[bool]) -> bytes:
    """The object without the rows marked True, in its own format."""
    if uri.endswith(".jsonl"):
        lines = [line for line in data.splitlines(keepends=True) if line.strip()]
        return b"".join(line for line, goes in zip(lines, gone, strict=True) if not goes)
    sink, left = BytesIO(), [not goes for goes in gone]
    if uri.endswith(".parquet"):
        pq.write_table(pq.read_table(BytesIO(data)).filter(left), sink)
    else:
        pyarrow.csv.write_csv(pyarrow.csv.read_csv(BytesIO(data)).filter(left), sink)
    return sink.getvalue()


def split_s3(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def batch_name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _list_s3(source: str) -> Iterator[tuple[str, str]]:
    bucket, pattern = split_s3(source)
    fixed = pattern.split("*", 1)[0].split("?", 1)[0]
    for key, etag in _keys_under(bucket, fixed):
        matches = (
            fnmatch(key, pattern) if fixed != pattern else key == pattern or key.startswith(f"{pattern.rstrip('/')}/")
        )
        if matches and key.endswith(FORMATS):
            yield f"s3://{bucket}/{key}", f"s3://{bucket}/{key}#{etag}"


def _keys_under(bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    try:
        for page in storage.s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", []):
                yield found["Key"], found["ETag"].strip('"')
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in {"NoSuchBucket", "AccessDenied"}:
            raise SourceError(f"bucket {bucket!r} cannot be listed: {error}; check the name and the rights") from None
        raise storage.unreachable(error) from error
    except BotoCoreError as error:
        raise storage.unreachable(error) from error


def _read_s3(bucket: str, key: str) -> bytes:
    try:
        return storage.s3().get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in {"NoSuchKey", "NoSuchBucket", "404"}:
            raise MissingObjectError(f"object s3://{bucket}/{key} is gone; deliver it again") from None
        raise storage.unreachable(error) from error
    except BotoCoreError as error:
        raise storage.unreachable(error) from error


def _list_local(source: str) -> Iterator[tuple[str, str]]:
    path = Path(source).expanduser()
    if path.is_dir():
        files: Iterator[Path] = path.iterdir()
    elif path.is_file():
        files = iter([path])
    else:
        files = path.parent.glob(path.name)
    for file in files:
        if file.suffix in FORMATS:
            stat = file.stat()
            yield str(file.resolve()), f"{file.resolve()}#{stat.st_size}-{stat.st_mtime_ns}"


def _read_local(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingObjectError(f"cannot read {path}: {error.strerror}; put it back or change the source") from None
