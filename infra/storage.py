"""The S3 client of this process, and its two buckets."""

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from infra import compaction, seaweed
from infra.errors import UnreachableError
from infra.s3 import open_client
from infra.settings import Settings, settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def s3() -> "S3Client":
    """Client of the settings' S3; the embedded SeaweedFS is started on first use. Clients are thread-safe."""
    return _client(settings())


def ensure_buckets() -> None:
    """Create the artifact and the inbox bucket where they are missing, and turn versioning on in both.

    Raises UnreachableError naming the endpoint and the remedy."""
    client = s3()
    try:
        for bucket in (settings().artifact_bucket, settings().inbox_bucket):
            _ensure_bucket(client, bucket)
    except (BotoCoreError, ClientError) as error:
        raise unreachable(error) from error


def compact() -> int | None:
    """After a purge: make the embedded S3 drop deleted bytes from its disk, and say how many. None where the S3 is
    not ours: what its disks keep is its provider's promise."""
    if settings().s3_endpoint is not None:
        return None
    return compaction.compact(settings().home)


def unreachable(error: Exception) -> UnreachableError:
    """What to raise when the S3 failed: names the endpoint, the cause and the remedy."""
    if settings().s3_endpoint is None:
        remedy = f"see {settings().home / 's3' / 'seaweedfs.log'}, then run the command again"
    else:
        remedy = "check DECIDUOUS_S3_ENDPOINT, DECIDUOUS_S3_ACCESS_KEY and DECIDUOUS_S3_SECRET_KEY"
    return UnreachableError("S3", s3().meta.endpoint_url, f"{error}; {remedy}")


def keys() -> tuple[str | None, str | None]:
    """Access and secret key for clients in other libraries; None where boto3 finds its own."""
    config = settings()
    if config.s3_endpoint is None:
        return seaweed.credentials(config.home)
    given = (config.s3_access_key, config.s3_secret_key)
    access, secret = (key.get_secret_value() if key is not None else None for key in given)
    return access, secret


def _ensure_bucket(client: "S3Client", bucket: str) -> None:
    known = {found["Name"] for found in client.list_buckets()["Buckets"]}
    if bucket not in known:
        # another process may be faster
        with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=bucket)
    if client.get_bucket_versioning(Bucket=bucket).get("Status") != "Enabled":
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


@cache
def _client(config: Settings) -> "S3Client":
    if config.s3_endpoint is None:
        return seaweed.client(config.home, seaweed.connect(config.home))
    return open_client(config.s3_endpoint, *keys(), config.s3_region)
