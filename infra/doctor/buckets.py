"""S3: does it answer, do the buckets keep versions, are conditional puts honoured, what expires, what is encrypted."""

from collections.abc import Iterator

from botocore.exceptions import BotoCoreError, ClientError

from infra import seaweed, storage
from infra.doctor.findings import Finding, bad, good, poor
from infra.settings import settings

PART = "s3"
PROBE = "doctor/probe"


def examine() -> Iterator[Finding]:
    if settings().s3_endpoint is None and not (settings().home / "s3" / "data").exists():
        seaweed.find_binary()
        yield good(PART, "the embedded SeaweedFS will be started on first use")
        return
    for bucket in storage.buckets():
        try:
            yield from _bucket(bucket)
        except ClientError as error:  # the other one may let us
            yield bad(PART, str(storage.failure(error, bucket)))
        except BotoCoreError as error:
            raise storage.failure(error) from error
    yield good(PART, f"{storage.s3().meta.endpoint_url} answers")


def _bucket(bucket: str) -> Iterator[Finding]:
    command = storage.missing_in(bucket)
    if command is not None:
        yield bad(PART, f"bucket {bucket} is missing or keeps no versions", f"deciduous migrate, or: {command}")
        return
    yield good(PART, f"bucket {bucket} keeps versions, {_encryption(bucket)}")
    if not storage.lifecycle_rules(bucket):
        yield poor(
            PART,
            f"nothing ends unfinished uploads in {bucket}",
            f"deciduous migrate, or: {storage.lifecycle_command(bucket)}",
        )
    yield from _probe(bucket)


def _encryption(bucket: str) -> str:
    if settings().s3_encryption is not None:
        return f"writes ask for {settings().s3_encryption}"
    try:
        rules = storage.s3().get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
        return f"encrypted by rule with {rules[0]['ApplyServerSideEncryptionByDefault']['SSEAlgorithm']}"
    except (ClientError, LookupError):
        return "no encryption asked for"


def _probe(bucket: str) -> Iterator[Finding]:
    """Write, write again on condition, read, and remove for good."""
    client = storage.s3()
    put = client.put_object(Bucket=bucket, Key=PROBE, Body=b"probe")
    try:
        client.put_object(Bucket=bucket, Key=PROBE, Body=b"again", IfNoneMatch="*")
        yield poor(
            PART, f"{bucket} ignores conditional puts: twins store a blob twice", "use an S3 that honours If-None-Match"
        )
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
            raise
    finally:
        for version in client.list_object_versions(Bucket=bucket, Prefix=PROBE).get("Versions", []):
            client.delete_object(Bucket=bucket, Key=PROBE, VersionId=version["VersionId"])
    if "VersionId" not in put:
        yield bad(PART, f"{bucket} says that it keeps versions and gives none", "use an S3 with versioning")
