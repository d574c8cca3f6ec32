"""Blobs by digest, verified reads, purges that leave nothing and sweeps that would see it."""

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.s3 import open_client
from registry import artifacts
from registry.artifacts import purge_keys, put_blob, sweep_bytes
from registry.canonical import canonical_json
from registry.errors import MissingObjectError, PurgeError, StorageUnavailableError, TamperedBlobError


def test_blob_comes_back_and_is_stored_once(s3, bucket):
    first = put_blob(s3, bucket, "adapters/", b"weights")
    assert put_blob(s3, bucket, "adapters", b"weights") == first
    assert first.key == f"adapters/{hashlib.sha256(b'weights').hexdigest()}"
    assert artifacts.get_blob(s3, bucket, first.key, first.sha256) == b"weights"
    assert len(artifacts.list_versions(s3, bucket)) == 1


def test_twins_that_put_a_blob_at_once_make_one_version(s3, bucket):
    with ThreadPoolExecutor(8) as twins:
        put = [twins.submit(put_blob, s3, bucket, "p", b"the same weights") for _ in range(16)]
        assert len({each.result() for each in put}) == 1
    assert len(artifacts.list_versions(s3, bucket)) == 1


def test_large_blob_goes_in_parts_once_and_comes_back(s3, bucket):
    data = os.urandom(1 << 20) * 33
    first = put_blob(s3, bucket, "p", data)
    assert put_blob(s3, bucket, "p", data) == first
    assert s3.head_object(Bucket=bucket, Key=first.key)["ETag"].endswith('-5"')  # S3's way to say: five parts
    assert artifacts.get_blob(s3, bucket, first.key, first.sha256) == data
    assert len(artifacts.list_versions(s3, bucket)) == 1


def test_blob_comes_back_after_a_plain_delete(s3, bucket):
    blob = put_blob(s3, bucket, "p", b"weights")
    s3.delete_object(Bucket=bucket, Key=blob.key)
    with pytest.raises(MissingObjectError, match=blob.key):
        artifacts.get_blob(s3, bucket, blob.key, blob.sha256)
    put_blob(s3, bucket, "p", b"weights")
    assert artifacts.get_blob(s3, bucket, blob.key, blob.sha256) == b"weights"


def test_tampered_blob_is_refused(s3, bucket):
    blob = put_blob(s3, bucket, "p", b"weights")
    s3.put_object(Bucket=bucket, Key=blob.key, Body=b"other")
    with pytest.raises(TamperedBlobError, match="restore"):
        artifacts.get_blob(s3, bucket, blob.key, blob.sha256)


def test_missing_bucket_and_dead_server_say_what_and_where(s3):
    with pytest.raises(MissingObjectError, match="no-such-bucket"):
        artifacts.get_blob(s3, "no-such-bucket", "k", "0")
    dead = open_client("http://127.0.0.1:9", "a", "b", "us-east-1", attempts=1)
    with pytest.raises(StorageUnavailableError, match=r"127\.0\.0\.1:9.*s3://bucket/"):
        put_blob(dead, "bucket", "p", b"x")


class Busy(BaseHTTPRequestHandler):
    """An S3 that answers its third request."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(200 if len(self.asked) == 3 else 503)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"weights")

    def log_message(self, *_):
        pass


def test_busy_server_is_asked_again():
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as busy:
        Thread(target=busy.serve_forever, daemon=True).start()
        client = open_client(f"http://127.0.0.1:{busy.server_port}", "a", "b", "us-east-1")
        digest = hashlib.sha256(b"weights").hexdigest()
        assert artifacts.get_blob(client, "bucket", digest, digest) == b"weights"
        busy.shutdown()
    assert Busy.asked == [f"/bucket/{digest}"] * 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "\\ud" not in ascii(value))


@given(JSON)
@hypothesis_settings(suppress_health_check=[HealthCheck.filter_too_much], deadline=None)
def test_canonical_json_is_stable_and_loses_nothing(value):
    encoded = canonical_json(value)
    assert json.loads(encoded) == value
    assert canonical_json(json.loads(encoded)) == encoded


def test_tensors_come_back_and_hash_by_value(s3, bucket):
    x_ND = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {"b": x_ND.T, "a": x_ND[1:], "half": x_ND.to(torch.bfloat16), "scalar": torch.tensor(3)}
    blob = artifacts.put_blob(s3, bucket, "adapters", artifacts.encode_tensors(tensors))
    found = artifacts.decode_tensors(artifacts.get_blob(s3, bucket, blob.key, blob.sha256), blob.key)
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    shuffled = {name: tensors[name].clone() for name in ("scalar", "half", "a", "b")}
    assert artifacts.put_blob(s3, bucket, "adapters", artifacts.encode_tensors(shuffled)) == blob


def fill(s3, bucket):
    """Three versions of k (one a marker), a neighbour whose key it starts, and an unfinished upload of k."""
    for body in (b"one secret", b"two secret"):
        s3.put_object(Bucket=bucket, Key="p/k", Body=body)
    s3.delete_object(Bucket=bucket, Key="p/k")
    s3.put_object(Bucket=bucket, Key="p/k2", Body=b"neighbour")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="p/k")
    s3.upload_part(Bucket=bucket, Key="p/k", UploadId=upload["UploadId"], PartNumber=1, Body=b"three secret")


def test_purge_leaves_no_version_marker_or_upload_and_spares_neighbours(s3, bucket):
    fill(s3, bucket)
    assert len(artifacts.list_versions(s3, bucket, "p/k")) == 4
    assert len(sweep_bytes(s3, bucket, [b"secret"])) == 2
    gone = purge_keys(s3, bucket, ["p/k", "p/k", "p/missing"])
    assert len(gone) == 4
    assert [version.key for version in artifacts.list_versions(s3, bucket)] == ["p/k2"]
    assert artifacts.list_uploads(s3, bucket) == []
    assert sweep_bytes(s3, bucket, [b"secret"]) == []
    assert purge_keys(s3, bucket, ["p/k"]) == []


def test_plain_delete_is_not_enough_and_the_sweep_sees_it(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"secret")
    s3.delete_object(Bucket=bucket, Key="k")
    (hit,) = sweep_bytes(s3, bucket, [b"absent", b"secret"])
    assert (hit.key, hit.marker, hit.place) == ("k", 1, "content")


def test_purge_of_a_prefix_takes_everything_under_it_only(s3, bucket):
    fill(s3, bucket)
    put_blob(s3, bucket, "q", b"stays")
    assert len(artifacts.purge_prefix(s3, bucket, "p/")) == 5
    assert len(artifacts.list_versions(s3, bucket)) == 1
    with pytest.raises(ValueError, match="empty prefix"):
        artifacts.purge_prefix(s3, bucket, "")


@pytest.mark.parametrize(
    ("lock", "told"),
    [
        ({"ObjectLockLegalHoldStatus": "ON"}, "lift its legal hold"),
        (
            {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": datetime(2099, 3, 1, 12, tzinfo=UTC)},
            "retention, 2099-03-01 12:00 UTC",
        ),
    ],
)
def test_purge_says_why_and_until_when_the_store_keeps_a_version(s3, lock, told):
    bucket = f"locked-{time.time_ns()}"
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", **lock)
    with pytest.raises(PurgeError, match=told):
        purge_keys(s3, bucket, ["k"])


def test_sweep_looks_at_keys_metadata_and_tags(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k/alice", Body=b"", Metadata={"who": "bob"}, Tagging="from=carol")
    hits = sweep_bytes(s3, bucket, [b"alice", b"bob", b"carol"])
    assert [(hit.marker, hit.place) for hit in hits] == [(0, "key"), (1, "metadata"), (2, "tags")]


@pytest.mark.parametrize("offset", [0, artifacts.CHUNK - 3, artifacts.CHUNK - 1, artifacts.CHUNK, 2 * artifacts.CHUNK])
def test_sweep_finds_a_marker_across_two_chunks(s3, bucket, offset):
    s3.put_object(Bucket=bucket, Key="k", Body=b"." * offset + b"secret" + b"." * 7)
    assert len(sweep_bytes(s3, bucket, [b"secret", b"long absent marker"])) == 1


def test_an_object_is_replaced_only_as_it_was_read(s3, bucket):
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"read")["ETag"].strip('"')
    assert artifacts.replace_object(s3, bucket, "k", etag, b"ours") == s3.head_object(Bucket=bucket, Key="k")["ETag"]
    assert artifacts.replace_object(s3, bucket, "k", etag, b"late") is None
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"ours"
    s3.delete_object(Bucket=bucket, Key="k")
    assert artifacts.replace_object(s3, bucket, "k", etag, b"late") is None
