"""`deciduous gc`: what nothing names goes with all its versions, what is named stays, nobody is disturbed."""

import os
import uuid

import pytest

from flows import maintaining
from flows.learn import learn
from infra import database, locks
from infra.errors import HeldError
from registry import artifacts, contents
from registry.errors import StaleEpochError
from registry.sections import Composition
from tasks import blobs, queries, source
from tasks.adapters import train_adapter
from tasks.batches import read_batch
from tasks.exclusion import alone
from tasks.garbage import clean_up
from tasks.manifests import load_manifest
from tasks.serving import Answerer
from tasks.training import train
from tests.flows.conftest import deliver, make_stream

BUCKET = "deciduous"


@pytest.fixture
def stream(ready, backbone, inbox):  # noqa: ARG001
    stream = make_stream(f"tidy-{uuid.uuid4().hex[:8]}", backbone, inbox)
    deliver(inbox, "batch-0", ["red", "blue"])
    learn(stream)
    return stream


@pytest.fixture
def puts(stream, s3):
    """Of each PUT under the stream's prefix, whether who collects garbage had to wait."""
    waited = []

    def note(params, **_):
        if f"/{blobs.stream_prefix(stream.name)}" in params["url_path"]:
            try:
                with locks.exclusive(f"names {stream.name}"):
                    waited.append(False)
            except HeldError:
                waited.append(True)

    s3.meta.events.register("before-call.s3.PutObject", note)
    yield waited
    s3.meta.events.unregister("before-call.s3.PutObject", note)


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


def test_a_batch_is_not_collected_while_it_is_entered(stream, inbox, puts):
    """It is read without holding the stream, and named when its transaction ends."""
    deliver(inbox, "batch-1", ["red", "blue"])
    ((uri, tag),) = [each for each in source.list_objects(stream.source) if "batch-1" in each[0]]
    assert read_batch.fn(stream, uri, tag) is not None
    assert puts == [True, True], "rows and quarantine"


def test_training_on_a_worker_is_not_collected_before_it_is_named(stream, puts):
    """A worker does not hold the stream."""
    train_adapter.fn(stream, shard_of(stream), f"{stream.name}-a9")
    assert puts == [True] * 5, "two checkpoints, weights, descriptor and statistics"


def test_a_mixture_on_a_worker_is_not_collected_before_it_is_named(stream, puts):
    mixed = stream.model_copy(update={"composition": Composition.MIX})
    train_adapter.fn(mixed, shard_of(stream), f"{stream.name}-a9")
    assert puts == [True] * 5, "a checkpoint, weights, descriptor, looks and statistics"


def test_training_stores_nothing_where_a_purge_may_be_over(stream, puts):
    with pytest.raises(StaleEpochError):
        train(stream, "adapter:late", [shard_of(stream)], epoch=-1)
    assert puts == []


def shard_of(stream):
    with database.transaction() as session:
        (shard,) = contents.done_shards(session, stream.name)
    return shard


def test_what_gc_removes_leaves_the_disk(stream, s3, home):
    """Its bytes stayed in the files of the embedded S3, which no command rewrote."""
    data = os.urandom(3000)  # random: the server compresses what it can
    artifacts.put_blob(s3, BUCKET, f"{blobs.stream_prefix(stream.name)}groups/default", data)

    def on_disk():
        return any(data[:100] in path.read_bytes() for path in (home / "s3" / "data").glob(f"{BUCKET}_*.dat"))

    assert on_disk()  # the negative control
    maintaining.gc(stream.name)
    assert not on_disk()
