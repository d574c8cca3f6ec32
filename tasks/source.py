"""The objects of a stream's source, in S3 or on a local disk."""

from collections.abc import Iterator
from fnmatch import fnmatch
from hashlib import sha256
from itertools import takewhile
from os.path import expanduser
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from infra import storage
from infra.settings import settings
from registry import artifacts
from registry.errors import SourceError
from registry.records import Delivery
from tasks.narration import say

FORMATS = (".parquet", ".jsonl", ".csv")
WILD = {"*", "?"}


def list_objects(source: str) -> list[tuple[str, str]]:
    """(uri, tag) of every object that the source names, in name order. Raises SourceError when none matches."""
    far = is_s3(source)
    found = sorted(list_s3(source) if far else _list_local(source))
    if not found:
        where = "bucket, prefix and pattern" if far else "folder and pattern"
        raise SourceError(f"source {source!r} matches no {', '.join(FORMATS)} object; check the {where}")
    return found


def is_s3(address: str) -> bool:
    """Whether it is no path of this machine. Raises SourceError for another address, S3:// too: as a path it would be
    a folder of that name."""
    if "://" in address and not address.startswith("s3://"):
        raise SourceError(f"{address!r} is neither an s3:// address nor a path of this machine")
    return address.startswith("s3://")


def fetch(uri: str, tag: str) -> tuple[Delivery, bytes]:
    """The object as it is now. In S3 the tag is that of the bytes that were read: a listing may be older."""
    if is_s3(uri):
        data, tag = _read_s3(uri)
    else:
        data = _read_local(Path(uri))
    return Delivery(uri=uri, digest=sha256(data).hexdigest(), size=len(data), tag=tag), data


def replace_object(read: Delivery, data: bytes) -> str | None:
    """Put these bytes in an S3 object's place and return the new tag; None where it is no more what was read."""
    bucket, key = split_s3(read.uri)
    etag = artifacts.replace_object(storage.s3(), bucket, key, read.tag.rpartition("#")[2], data)
    return None if etag is None else _tag(read.uri, etag)


def split_s3(uri: str) -> tuple[str, str]:
    """(bucket, key). A key may hold any character, also those that end a path on the web."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def batch_name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def list_s3(source: str) -> Iterator[tuple[str, str]]:
    """(uri, tag) of every object of an S3 source."""
    bucket, others = split_s3(source)[0], list[str]()
    if not bucket:
        raise SourceError(f"source {source!r} names no bucket; s3://BUCKET/PREFIX is asked for")
    for key, tag in tags_under(bucket, fixed_prefix(source)):
        if is_object(source, key):
            yield f"s3://{bucket}/{key}", tag
        elif _is_named(source, key) and not key.endswith("/"):  # which stands for a folder
            others.append(ascii(key.rpartition("/")[2]))
    _say_left_out(others)


def names_many(source: str) -> bool:
    """Whether this is a folder or a pattern, where no object is called so itself."""
    key = split_s3(source)[1] if source.startswith("s3://") else source
    return not key or key.endswith("/") or bool(WILD & {*key}) or Path(source).is_dir()


def fixed_prefix(source: str) -> str:
    """What every key of an S3 source begins with."""
    return split_s3(source)[1].split("*", 1)[0].split("?", 1)[0]


def is_object(source: str, key: str) -> bool:
    """Whether an S3 source names the key, and its ending is one that is read."""
    return key.lower().endswith(FORMATS) and _is_named(source, key)


def _is_named(source: str, key: str) -> bool:
    _, pattern = split_s3(source)
    if fixed_prefix(source) != pattern:
        return fnmatch(key, _with_brackets(pattern))
    folder = pattern.rstrip("/")
    return not folder or key == pattern or key.startswith(f"{folder}/")


def _with_brackets(pattern: str) -> str:
    """The pattern in which a bracket is a part of a name, not the beginning of a class of characters."""
    return pattern.replace("[", "[[]")


def _say_left_out(names: list[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:3])
        say(f"{len(names)} files are left out, whose names end in none of {', '.join(FORMATS)}: {shown}")


def tags_under(bucket: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, tag) of every object of a bucket that begins so."""
    try:
        for page in storage.s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", []):
                yield found["Key"], _tag(f"s3://{bucket}/{found['Key']}", found["ETag"])
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in {"NoSuchBucket", "AccessDenied"}:
            raise SourceError(f"bucket {bucket!r} cannot be listed: {error}; check the name and the rights") from None
        raise storage.failure(error) from error
    except ParamValidationError:
        raise SourceError(f"{bucket!r} is no name of a bucket; check the address") from None
    except BotoCoreError as error:
        raise storage.failure(error) from error


def _read_s3(uri: str) -> tuple[bytes, str]:
    """(content, tag)."""
    bucket, key = split_s3(uri)
    try:
        answer = storage.s3().get_object(Bucket=bucket, Key=key)
        _check_size(uri, answer["ContentLength"])
        return answer["Body"].read(), _tag(uri, answer["ETag"])
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        if code == "NoSuchBucket":
            raise SourceError(f"there is no bucket {bucket!r}; check the address {uri}") from None
        if code in {"NoSuchKey", "404"}:
            raise SourceError(f"object {uri} is gone; deliver it again") from None
        if code == "AccessDenied":
            raise SourceError(f"object {uri} may not be read; check its rights") from None
        raise storage.failure(error) from error
    except ParamValidationError:
        raise SourceError(f"{uri} names no object of a bucket; s3://BUCKET/KEY is asked for") from None
    except BotoCoreError as error:
        raise storage.failure(error) from error


def _tag(uri: str, etag: str) -> str:
    bare = etag.strip('"')
    return f"{uri}#{bare}"


def _check_size(uri: str, size: int) -> None:
    if size > settings().object_bytes:
        raise SourceError(
            f"object {uri} has {size} bytes, at most {settings().object_bytes} (DECIDUOUS_OBJECT_BYTES) are read; "
            "deliver it in parts"
        )


def refuse_in_home(source: str) -> None:
    """What is in the home counts as left over, by the sweep of a ticket: the owner's own files as well."""
    home = settings().home
    if not is_s3(source) and _root_of(source).is_relative_to(home):
        raise SourceError(
            f"source {source!r} lies in the home {home}, in which a deletion may leave nothing: no ticket could end "
            "well there; move the folder out, or name another home (--home, DECIDUOUS_HOME)"
        )


def _list_local(source: str) -> Iterator[tuple[str, str]]:
    """Regular files of the folder itself, or of a pattern, where ** stands for any folders. A link out of where the
    pattern begins is left out: whoever may write there may not read all we can."""
    path, root = Path(expanduser(source)), _root_of(source)
    if path.is_dir():
        files = list(path.iterdir())
    elif path.is_file():
        files = [path]
    else:
        fixed = _fixed_parts(path)
        files = list(Path(*fixed).glob(_with_brackets(str(Path(*path.parts[len(fixed) :])))))
    _say_left_out([ascii(file.name) for file in files if file.suffix.lower() not in FORMATS and file.is_file()])
    for file in files:
        if file.suffix.lower() in FORMATS and (found := _resolved(file, root)) is not None:
            stat = found.stat()
            yield str(found), f"{found}#{stat.st_size}-{stat.st_mtime_ns}"


def _root_of(source: str) -> Path:
    """The folder that a local source begins in, whatever links lead there."""
    path = Path(expanduser(source))
    if path.is_dir():
        return path.resolve()
    return path.resolve().parent if path.is_file() else Path(*_fixed_parts(path)).resolve()


def _fixed_parts(path: Path) -> list[str]:
    """Of a pattern, the folders before its first wildcard."""
    return list(takewhile(lambda part: not WILD & {*part}, path.parent.parts))


def _resolved(file: Path, root: Path) -> Path | None:
    """The regular file that the name leads to; None where it leads out of the folder or into the home, which keeps
    files of its own, or has no UTF-8 name."""
    try:
        str(file).encode()
        found, home = file.resolve(), settings().home
        if found.is_file() and found.is_relative_to(root) and (root.is_relative_to(home) or home not in found.parents):
            return found
    except (UnicodeEncodeError, OSError, RuntimeError):  # the last one is a loop of links
        pass
    say(f"{file.name!a} is left out: no regular file of {root}, one of the home, or its name is not UTF-8")
    return None


def _read_local(path: Path) -> bytes:
    try:
        _check_size(str(path), path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"object {path} cannot be read: {error.strerror}; put it back or change the source") from None
