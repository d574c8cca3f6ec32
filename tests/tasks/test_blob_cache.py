"""Tensors come from the local disk once they were read, and leave it with the blob."""

import json
import os

import pytest
import torch

from infra.settings import settings
from registry.artifacts import encode_tensors, put_blob
from registry.canonical import canonical_json
from registry.errors import MissingObjectError, StorageUnavailableError
from tasks import blob_cache, blobs, disk_cache
from tasks.learning.banks import AdapterBank
from tests.kernels.test_grouped_lora import CountOps


@pytest.fixture
def stored(s3):
    """Puts adapters into the bucket, in front of an empty cache."""
    blob_cache.retain([])

    def put(*numbers):
        found = [put_blob(s3, settings().artifact_bucket, "cache", encode_tensors(adapter(n))) for n in numbers]
        return [(blob.key, blob.sha256) for blob in found]

    yield put
    blob_cache.retain([])


@pytest.fixture
def gets(s3):
    """Counts the GETs that reach S3."""
    seen = []
    handler = lambda **_: seen.append(1)  # noqa: E731
    s3.meta.events.register("before-call.s3.GetObject", handler)
    yield seen
    s3.meta.events.unregister("before-call.s3.GetObject", handler)


def adapter(number):
    return {"blocks.3.down.bias": torch.full((4,), float(number)), "blocks.3.up.weight": torch.ones(8, 4) * number}


def files():
    return list((settings().home / "blobs").glob("*/*"))


def test_a_second_read_asks_the_disk_alone(stored, gets):
    (blob,) = stored(1)
    first, again = blob_cache.read_tensors(*blob), blob_cache.read_tensors(*blob)
    assert len(gets) == 1
    assert all(torch.equal(first[name], again[name]) for name in adapter(1))


def test_loading_the_last_adapter_costs_what_the_first_did(stored, gets):
    """Operations and requests of each load into the bank, the slots of a doubled bank apart."""
    bank, costs = AdapterBank(), []
    for number, blob in enumerate(stored(*range(64))):
        before = len(gets)
        with CountOps() as counted:
            bank.write(f"a{number}", blob_cache.read_tensors(*blob))
        costs.append((len(gets) - before, sum(counted.ops.values())))
    assert all(torch.equal(bank.read(f"a{n}")["blocks.3.up.weight"], torch.ones(8, 4) * n) for n in (0, 31, 63))
    doubled = {1, 2, 4, 8, 16, 32}
    assert len({cost for number, cost in enumerate(costs) if number not in doubled | {0}}) == 1


def test_a_manifest_is_kept_read_again_after_damage_and_purged(s3, stored, gets):
    blob = put_blob(s3, settings().artifact_bucket, "cache", canonical_json({"cut": 3}))
    read = lambda: json.loads(blob_cache.read_manifest(blob.key, blob.sha256))  # noqa: E731
    assert read() == read() == {"cut": 3}
    assert len(gets) == 1
    (path,) = files()
    path.write_bytes(b'{"cut":4}')
    assert read() == {"cut": 3}
    assert len(gets) == 2
    (weights,) = stored(7)
    blob_cache.read_tensors(*weights)
    blob_cache.retain([], blob_cache.WEIGHTS)
    assert files() == [path]
    assert blob_cache.forget([blob.key]) == 1
    assert files() == []


@pytest.mark.usefixtures("stored")
def test_a_disk_that_takes_no_copy_keeps_nobody_from_reading_a_manifest(s3, monkeypatch):
    blob = put_blob(s3, settings().artifact_bucket, "cache", canonical_json({"cut": 3}))

    def refuse(*_):
        raise StorageUnavailableError("full")

    monkeypatch.setattr(disk_cache, "write_whole", refuse)
    assert json.loads(blob_cache.read_manifest(blob.key, blob.sha256)) == {"cut": 3}
    assert files() == []


def test_a_damaged_copy_is_fetched_again(stored, gets):
    (blob,) = stored(2)
    blob_cache.read_tensors(*blob)
    path = files()[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert torch.equal(blob_cache.read_tensors(*blob)["blocks.3.down.bias"], torch.full((4,), 2.0))
    assert len(gets) == 2


def test_a_purged_blob_leaves_the_disk_too(stored):
    (blob,) = stored(3)
    blob_cache.read_tensors(*blob)
    blobs.purge([blob[0]])
    assert files() == []
    with pytest.raises(MissingObjectError):
        blob_cache.read_tensors(*blob)


def test_what_was_used_longest_ago_goes_first(stored, set_variable):
    kept = stored(4, 5, 6)
    for blob in kept:
        blob_cache.read_tensors(*blob)
    sizes = {path.name: path.stat().st_size for path in files()}
    for age, (_, digest) in enumerate(kept):
        os.utime(next(p for p in files() if p.name.startswith(digest)), (age, age))
    set_variable("BLOB_CACHE_BYTES", max(sizes.values()) * 2)
    blob_cache.trim()
    assert {path.name.split(".")[0] for path in files()} == {kept[1][1], kept[2][1]}
