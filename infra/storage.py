"""The S3 client of this process, and its two buckets."""

import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from infra import compaction, seaweed
from infra.errors import BucketError, InfraError, RefusedError, UnreachableError
from infra.s3 import encrypt_writes, open_client
from infra.settings import AWS, Settings, settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LIFECYCLE = Path(__file__).with_name("lifecycle.json")
NOTHING_THERE = {"404", "NoSuchBucket", "NoSuchKey"}
DENIED = (401, 403)


def s3() -> "S3Client":
    """Client of the settings' S3; the embedded SeaweedFS is started on first use. Clients are thread-safe."""
    return _client(settings())


def ensure_buckets() -> None:
    """See that both buckets are there and keep versions. Those of the embedded S3 are made; elsewhere nothing is
    changed without being asked. Raises BucketError with the command that helps, or what `failure` says."""
    if settings().s3_endpoint is None:
        prepare_buckets()
    else:
        _check(settings())


def prepare_buckets() -> None:
    """Make the artifact and the inbox bucket where they are missing, turn versioning on, and set what may expire
    where no rules are set."""
    client = s3()
    try:
        for bucket in buckets():
            _prepare(client, bucket)
    except (BotoCoreError, ClientError) as error:
        raise failure(error) from error


def buckets() -> tuple[str, str]:
    return settings().artifact_bucket, settings().inbox_bucket


def missing() -> dict[str, str | None]:
    """`missing_in` of each of our buckets. Raises what `failure` says."""
    found = dict[str, str | None]()
    for bucket in buckets():
        try:
            found[bucket] = missing_in(bucket)
        except (BotoCoreError, ClientError) as error:
            raise failure(error, bucket) from error
    return found


def missing_in(bucket: str) -> str | None:
    """The command that makes the bucket fit for use; None when it is there and keeps versions."""
    client = s3()
    try:
        client.head_bucket(Bucket=bucket)
        status = client.get_bucket_versioning(Bucket=bucket).get("Status")
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in NOTHING_THERE:
            raise
        return f"{_aws()} create-bucket --bucket {bucket} && {_versioning(bucket)}"
    return None if status == "Enabled" else _versioning(bucket)


def lifecycle_rules(bucket: str) -> list[Any]:
    """The rules of what may expire; empty when none were set."""
    try:
        return list(s3().get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"])
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") != "NoSuchLifecycleConfiguration":
            raise
        return []


def lifecycle_command(bucket: str) -> str:
    return f"{_aws()} put-bucket-lifecycle-configuration --bucket {bucket} --lifecycle-configuration file://{LIFECYCLE}"


def compact() -> int | None:
    """After a purge: make the embedded S3 drop deleted bytes from its disk, and say how many. None where the S3 is
    not ours: what its disks keep is its provider's promise."""
    return compaction.compact(settings().home) if is_own() else None


def is_own() -> bool:
    """Whether the S3 is this home's SeaweedFS, also where the settings name it by its address."""
    given, server = settings().s3_endpoint, seaweed.find(settings().home)
    return given is None or (server is not None and server.endpoint == given)


def failure(error: Exception, bucket: str | None = None) -> InfraError:
    """What to raise when the S3 failed: names the endpoint, the bucket that was asked for, the cause and the remedy.
    Keys or rights that are refused are refused again, so that is no UnreachableError, which is repeated."""
    if settings().s3_endpoint is None:
        remedy = f"see {settings().home / 's3' / 'seaweedfs.log'}, then run the command again"
    else:
        remedy = "check DECIDUOUS_S3_ENDPOINT and the keys (DECIDUOUS_S3_ACCESS_KEY, or what AWS tools read)"
    address = s3().meta.endpoint_url
    # an upload's own error leaves the client's behind it
    cause = error if isinstance(error, ClientError) else error.__context__
    if isinstance(cause, ClientError) and cause.response["ResponseMetadata"]["HTTPStatusCode"] in DENIED:
        where = f"S3 at {address}" if bucket is None else f"bucket {bucket} at {address}"
        return RefusedError(where, cause.response["Error"]["Code"], f"{error}; {remedy}")
    return UnreachableError("S3", address, f"{error}; {remedy}")


def keys() -> tuple[str | None, str | None]:
    """Access and secret key for clients in other libraries; None where boto3 finds its own."""
    config = settings()
    if config.s3_endpoint is None:
        return seaweed.credentials(config.home)
    given = (config.s3_access_key, config.s3_secret_key)
    access, secret = (key.get_secret_value() if key is not None else None for key in given)
    return access, secret


@cache
def _check(_config: Settings) -> None:
    """Once a process: a bucket does not lose its versioning while a flow runs."""
    for bucket, command in missing().items():
        if command is not None:
            raise BucketError(bucket, command)


def _prepare(client: "S3Client", bucket: str) -> None:
    if missing_in(bucket) is not None:
        # another process may be faster
        with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=bucket, **_location())
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    if not lifecycle_rules(bucket):
        client.put_bucket_lifecycle_configuration(
            Bucket=bucket, LifecycleConfiguration=json.loads(LIFECYCLE.read_bytes())
        )


def _location() -> Any:
    """AWS wants the region named everywhere but in its first one."""
    region = settings().s3_region
    named = settings().s3_endpoint is not None and region != "us-east-1"
    return {"CreateBucketConfiguration": {"LocationConstraint": region}} if named else {}


def _aws() -> str:
    endpoint = settings().s3_endpoint
    return "aws s3api" if endpoint in (None, AWS) else f"aws --endpoint-url {endpoint} s3api"


def _versioning(bucket: str) -> str:
    return f"{_aws()} put-bucket-versioning --bucket {bucket} --versioning-configuration Status=Enabled"


@cache
def _client(config: Settings) -> "S3Client":
    if config.s3_endpoint is None:
        client = seaweed.client(config.home, seaweed.connect(config.home))
    else:
        endpoint = None if config.s3_endpoint == AWS else config.s3_endpoint
        client = open_client(endpoint, *keys(), config.s3_region)
    if config.s3_encryption is not None:
        encrypt_writes(client, config.s3_encryption, config.s3_kms_key)
    return client


# two processes that read from one connection would get each other's answers
os.register_at_fork(after_in_child=_client.cache_clear)
