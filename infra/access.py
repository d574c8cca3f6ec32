"""Who may read which group's blobs in S3: one prefix per group, so that the store itself keeps groups apart."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote


def group_policy(bucket: str, stream: str, groups: Sequence[str]) -> dict[str, Any]:
    """An IAM policy for a reader of these groups of a stream; attach it to a role or user of any S3 that speaks IAM."""
    prefixes = [_prefix(stream, group) for group in groups]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:GetObjectVersion"],
                "Resource": [f"arn:aws:s3:::{bucket}/{prefix}*" for prefix in prefixes],
            },
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": [f"arn:aws:s3:::{bucket}"],
                "Condition": {"StringLike": {"s3:prefix": [f"{prefix}*" for prefix in prefixes]}},
            },
        ],
    }


def group_identity(
    name: str, keys: Mapping[str, str], bucket: str, stream: str, groups: Sequence[str]
) -> dict[str, Any]:
    """The same as an identity of SeaweedFS's `s3.json`; keys are accessKey and secretKey."""
    actions = [f"{action}:{bucket}/{_prefix(stream, group)}*" for group in groups for action in ("Read", "List")]
    return {"name": name, "credentials": [dict(keys)], "actions": actions}


def _prefix(stream: str, group: str) -> str:
    """Ends in a slash: a group whose name begins like another's is another group."""
    return f"streams/{stream}/groups/{quote(group, safe='')}/"
