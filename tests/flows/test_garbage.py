"""`deciduous gc`: what nothing names goes with all its versions, what is named stays, nobody is disturbed."""

import uuid

import pytest

from flows.learn import learn
from infra.errors import HeldError
from registry import artifacts
from tasks import blobs, queries
from tasks.exclusion import alone
from tasks.garbage import clean_up
from tasks.manifests import load_manifest
from tasks.serving import Answerer
from tests.flows.conftest import deliver, make_stream

BUCKET = "deciduous"


@pytest.fixture
def stream(ready, backbone, inbox):  # noqa: ARG001
    stream = make_stream(f"tidy-{uuid.uuid4().hex[:8]}", backbone, inbox)
    deliver(inbox, "batch-0", ["red", "blue"])
    learn(stream)
    return stream


def test_what_nothing_names_goes_and_what_is_named_stays(stream, s3):
    prefix = blobs.stream_prefix(stream.name)
    named = {version.key for version in artifacts.list_versions(s3, BUCKET, prefix)}
    assert all(key.startswith((f"{prefix}groups/default/", f"{prefix}shared/")) for key in named)
    before = clean_up(stream.name, dry_run=True)
    assert before["live_blobs"] <= before["references"]
    assert before["live_blobs"] + before["dead_blobs"] == len(named)
    stray = artifacts.put_blob(s3, BUCKET, f"{prefix}groups/default", b"a worker died before it named this")
    s3.put_object(Bucket=BUCKET, Key=stray.key, Body=b"and a second version")
    s3.create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}shared/never-completed")

    found = clean_up(stream.name, dry_run=True)
    assert (found["dead_blobs"], found["unfinished_uploads"]) == (before["dead_blobs"] + 1, 1)
    assert found["dead_bytes"] == before["dead_bytes"] + 54
    assert len([v for v in artifacts.list_versions(s3, BUCKET, prefix) if v.key == stray.key]) == 2  # it was a dry run
    with alone(stream.name), pytest.raises(HeldError, match="is being worked on by"):
        clean_up(stream.name, dry_run=False)
    assert clean_up(stream.name, dry_run=False) == found

    assert stray.key not in {version.key for version in artifacts.list_versions(s3, BUCKET, prefix)}
    after = clean_up(stream.name, dry_run=True)
    assert (after["dead_blobs"], after["unfinished_uploads"]) == (0, 0)
    assert (after["live_blobs"], after["references"]) == (before["live_blobs"], before["references"])
    champion = queries.status(stream.name)[0]["champion"]
    assert Answerer(load_manifest(stream.name, champion)).answer([b"a b c"], ["default"]).labels
