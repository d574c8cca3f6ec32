"""Groups keep apart in the store itself: a key of one group cannot read, write or list another's prefix."""

import json

import pytest
from botocore.exceptions import ClientError

from infra import seaweed
from infra.access import Role, group_identity, group_policy, new_keys, role_identity, role_policy
from infra.files import write_private
from infra.s3 import open_client

BUCKET, INBOX = "shared", "inbox"


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """An S3 of the test's own, with an administrator and a key for each of two groups."""
    home = tmp_path_factory.mktemp("access")
    seaweed.credentials(home)
    file = home / "s3" / "s3.json"
    config = json.loads(file.read_text())
    keys = {
        group: {"accessKey": f"{group}key0000", "secretKey": f"{group}-secret-{'x' * 20}"} for group in ("red", "blue")
    }
    config["identities"] += [group_identity(f"reader-{g}", k, BUCKET, "mail", [g]) for g, k in keys.items()]
    roles = {role: {"accessKey": f"{role}key0000", "secretKey": f"{role}-secret-{'x' * 20}"} for role in Role}
    config["identities"] += [role_identity(role, k, INBOX, BUCKET) for role, k in roles.items()]
    keys_of = {**keys, **roles}
    write_private(file, json.dumps(config).encode())
    server = seaweed.connect(home)
    admin = seaweed.client(home, server)
    for bucket in (BUCKET, INBOX):
        admin.create_bucket(Bucket=bucket)
        admin.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        admin.put_object(Bucket=bucket, Key="there", Body=b"x")
    for group in keys:
        admin.put_object(Bucket=BUCKET, Key=f"streams/mail/groups/{group}/adapter", Body=group.encode())
        admin.put_object(Bucket=BUCKET, Key=f"streams/mail/groups/{group}dish/adapter", Body=b"another group")
    yield {
        g: open_client(server.endpoint, k["accessKey"], k["secretKey"], seaweed.REGION, 1) for g, k in keys_of.items()
    }
    seaweed.leave(home)


def refused(call, **arguments):
    with pytest.raises(ClientError) as caught:
        call(Bucket=BUCKET, **arguments)
    return caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


def test_a_group_reads_its_own_prefix(clients):
    for group in ("red", "blue"):
        client = clients[group]
        assert (
            client.get_object(Bucket=BUCKET, Key=f"streams/mail/groups/{group}/adapter")["Body"].read()
            == group.encode()
        )


def test_the_wrong_key_answers_403(clients):
    for group, other in (("red", "blue"), ("blue", "red")):
        client = clients[group]
        assert refused(client.get_object, Key=f"streams/mail/groups/{other}/adapter") == 403
        assert refused(client.get_object, Key=f"streams/mail/groups/{group}dish/adapter") == 403
        assert refused(client.put_object, Key=f"streams/mail/groups/{group}/adapter", Body=b"x") == 403
        assert refused(client.list_objects_v2, Prefix=f"streams/mail/groups/{other}/") == 403


def test_keys_are_drawn_anew_and_long_enough():
    first, second = new_keys(), new_keys()
    assert not set(first.values()) & set(second.values())
    assert len(first["secretKey"]) == 40


def test_the_policy_names_the_prefixes_of_its_groups_alone():
    policy = group_policy("art", "mail", ["red", "a b"])
    read, listed = policy["Statement"]
    assert read["Resource"] == [f"arn:aws:s3:::art/streams/mail/groups/{g}/*" for g in ("red", "a%20b")]
    assert listed["Condition"] == {
        "StringLike": {"s3:prefix": ["streams/mail/groups/red/*", "streams/mail/groups/a%20b/*"]}
    }


DO = {
    "read": lambda client, bucket: client.get_object(Bucket=bucket, Key="there"),
    "list": lambda client, bucket: client.list_object_versions(Bucket=bucket, Prefix="there"),
    "write": lambda client, bucket: client.put_object(Bucket=bucket, Key="new", Body=b"x"),
    "purge": lambda client, bucket: client.delete_object(Bucket=bucket, Key="new"),
    "make": lambda client, bucket: client.create_bucket(Bucket=f"{bucket}-more"),
}
MAY = {
    Role.DELIVER: {("write", INBOX), ("purge", INBOX)},
    Role.SERVE: {("read", BUCKET), ("list", BUCKET)},
    Role.LEARN: {("read", INBOX), ("list", INBOX), *((what, BUCKET) for what in ("read", "list", "write", "purge"))},
    Role.FORGET: {(what, bucket) for what in ("read", "list", "write", "purge") for bucket in (INBOX, BUCKET)},
}
"""On SeaweedFS, where who may write may also delete; the IAM policy tells them apart."""


@pytest.mark.parametrize("role", Role)
def test_a_role_may_do_its_work_and_nothing_else(clients, role):
    may = set()
    for what, do in DO.items():
        for bucket in (INBOX, BUCKET):
            try:
                do(clients[role], bucket)
                may.add((what, bucket))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 403:
                    raise
    assert may == MAY[role]


def test_only_who_forgets_may_purge_on_an_s3_that_speaks_iam():
    for role in Role:
        allowed = {action for part in role_policy(role, INBOX, BUCKET)["Statement"] for action in part["Action"]}
        assert ("s3:DeleteObjectVersion" in allowed) == (role == Role.FORGET)
        assert not any("*" in action for action in allowed)
