"""Build an S3 client that gives up in bounded time."""

from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def open_client(
    endpoint: str, access_key: str | None, secret_key: str | None, region: str, attempts: int = 4
) -> "S3Client":
    """A path-style client. Without keys boto3 looks where it always does (environment, profile, role)."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=region,
        config=Config(
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=60,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            max_pool_connections=32,
        ),
    )
