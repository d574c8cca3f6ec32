"""The objects of a stream's source, in S3 or on a local disk."""

from collections.abc import Iterator
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

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
        data = storage.read_object(bucket, key)
    else:
        data = _read_local(Path(uri))
    return Delivery(uri=uri, digest=sha256(data).hexdigest(), size=len(data), tag=tag), data


def split_s3(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def batch_name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _list_s3(source: str) -> Iterator[tuple[str, str]]:
    bucket, pattern = split_s3(source)
    fixed = pattern.split("*", 1)[0].split("?", 1)[0]
    for key, etag in storage.list_objects(bucket, fixed):
        matches = (
            fnmatch(key, pattern) if fixed != pattern else key == pattern or key.startswith(f"{pattern.rstrip('/')}/")
        )
        if matches and key.endswith(FORMATS):
            yield f"s3://{bucket}/{key}", f"s3://{bucket}/{key}#{etag}"


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
