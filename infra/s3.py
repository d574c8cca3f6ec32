"""Build an S3 client that gives up in bounded time."""

from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WRITES = ("PutObject", "CreateMultipartUpload", "CopyObject")


def open_client(
    endpoint: str | None, access_key: str | None, secret_key: str | None, region: str, attempts: int = 4
) -> "S3Client":
    """A client that repeats with backoff what fails for a while. Without keys boto3 looks where it always does
    (environment, profile, role); without an endpoint it goes to AWS, with one it speaks path-style."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=region,
        config=Config(
            s3={"addressing_style": "path" if endpoint else "auto"},
            connect_timeout=5,
            read_timeout=60,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            max_pool_connections=32,
        ),
    )


def encrypt_writes(client: "S3Client", method: str, kms_key: str | None) -> None:
    """Ask the server to encrypt everything that this client writes: method AES256 or aws:kms."""
    wanted = {"ServerSideEncryption": method, **({"SSEKMSKeyId": kms_key} if kms_key else {})}

    def ask(params: dict[str, Any], **_: Any) -> None:
        params.update(wanted)

    for operation in WRITES:
        client.meta.events.register(f"provide-client-params.s3.{operation}", ask)
