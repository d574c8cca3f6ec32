"""Groups keep apart in the store itself: a key of one group cannot read, write or list another's prefix."""

import json

import pytest
from botocore.exceptions import ClientError

from infra import seaweed
from infra.access import group_identity, group_policy
from infra.files import write_private
from infra.s3 import open_client

BUCKET = "shared"


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
    write_private(file, json.dumps(config).encode())
    server = seaweed.connect(home)
    admin = seaweed.client(home, server)
    admin.create_bucket(Bucket=BUCKET)
    for group in keys:
        admin.put_object(Bucket=BUCKET, Key=f"streams/mail/groups/{group}/adapter", Body=group.encode())
        admin.put_object(Bucket=BUCKET, Key=f"streams/mail/groups/{group}dish/adapter", Body=b"another group")
    yield {g: open_client(server.endpoint, k["accessKey"], k["secretKey"], seaweed.REGION, 1) for g, k in keys.items()}
    seaweed.leave(home)


def refused(call, **arguments):
    with pytest.raises(ClientError) as caught:
        call(Bucket=BUCKET, **arguments)
    return caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


def test_a_group_reads_its_own_prefix(clients):
    for group, client in clients.items():
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


def test_the_policy_names_the_prefixes_of_its_groups_alone():
    policy = group_policy("art", "mail", ["red", "a b"])
    read, listed = policy["Statement"]
    assert read["Resource"] == [f"arn:aws:s3:::art/streams/mail/groups/{g}/*" for g in ("red", "a%20b")]
    assert listed["Condition"] == {
        "StringLike": {"s3:prefix": ["streams/mail/groups/red/*", "streams/mail/groups/a%20b/*"]}
    }
