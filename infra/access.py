"""Who may read which group's blobs in S3: one prefix per group, so that the store itself keeps groups apart."""

import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum
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


def new_keys() -> dict[str, str]:
    """An access key and a secret key, drawn and kept nowhere."""
    return {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}


class Role(StrEnum):
    """What a process may do in the two buckets: no more than its work."""

    DELIVER = "deliver"
    """Puts objects into the inbox and reads nothing."""
    SERVE = "serve"
    """Reads artifacts and writes nothing."""
    LEARN = "learn"
    """Reads the inbox, reads and writes artifacts. A deletion needs FORGET."""
    FORGET = "forget"
    """Reads, writes and purges in both."""


_OBJECTS = {
    "Read": ["s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectTagging"],
    "Write": ["s3:PutObject", "s3:AbortMultipartUpload"],
    "Purge": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
}
_BUCKETS = {
    "List": ["s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads", "s3:GetBucketVersioning"],
}
_GRANTS: dict[Role, tuple[tuple[str, ...], tuple[str, ...]]] = {  # (inbox, artifacts)
    Role.DELIVER: (("Write",), ()),
    Role.SERVE: ((), ("Read", "List")),
    Role.LEARN: (("Read", "List"), ("Read", "List", "Write")),
    Role.FORGET: (("Read", "List", "Write", "Purge"), ("Read", "List", "Write", "Purge")),
}


def role_policy(role: Role, inbox: str, artifacts: str) -> dict[str, Any]:
    """The least that a role needs, as an IAM policy for any S3 that speaks IAM."""
    statements = []
    for bucket, grants in zip((inbox, artifacts), _GRANTS[role], strict=True):
        on_objects = [action for grant in grants for action in _OBJECTS.get(grant, [])]
        on_bucket = [action for grant in grants for action in _BUCKETS.get(grant, [])]
        for actions, resource in ((on_objects, f"arn:aws:s3:::{bucket}/*"), (on_bucket, f"arn:aws:s3:::{bucket}")):
            if actions:
                statements.append({"Effect": "Allow", "Action": actions, "Resource": [resource]})
    return {"Version": "2012-10-17", "Statement": statements}


def role_identity(role: Role, keys: Mapping[str, str], inbox: str, artifacts: str) -> dict[str, Any]:
    """The same as an identity of SeaweedFS, which does not tell a purge from a write."""
    allowed = [
        f"{'Write' if grant == 'Purge' else grant}:{bucket}"
        for bucket, grants in zip((inbox, artifacts), _GRANTS[role], strict=True)
        for grant in grants
    ]
    return {"name": role.value, "credentials": [dict(keys)], "actions": sorted(set(allowed))}


def _prefix(stream: str, group: str) -> str:
    """Ends in a slash: a group whose name begins like another's is another group."""
    return f"streams/{stream}/groups/{quote(group, safe='')}/"
