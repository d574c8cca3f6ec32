"""S3 that fails, before the real one: what a client sees, and what the store shows afterwards."""

import os
import resource
import subprocess
import sys
import uuid

import pytest

from flows.learn import learn
from infra import seaweed
from infra.s3 import open_client
from infra.settings import settings
from registry import artifacts
from registry.errors import StorageRefusedError, StorageUnavailableError
from tasks import queries
from tasks.retries import worth_retrying
from tests.faults.proxy import CUT, ERROR, PASS, REFUSE, before
from tests.flows.conftest import backbone, deliver, inbox, make_stream, ready

__all__ = ["backbone", "inbox", "ready"]

BLOB = os.urandom(200_000)


class Failed:
    """What Prefect asks our condition with: the state of a run that ended in an exception."""

    def __init__(self, error):
        self.error = error

    def result(self, raise_on_failure):  # noqa: ARG002
        return self.error


def is_retried(error) -> bool:
    return worth_retrying(None, None, Failed(error))


@pytest.fixture
def through(s3):
    """A proxy before the session's S3, and a client that goes through it."""
    with before(s3.meta.endpoint_url) as proxy:
        yield proxy, open_client(proxy.address, *seaweed.credentials(settings().home), seaweed.REGION)


@pytest.mark.parametrize(("fault", "name"), [(ERROR, "answers 500"), (REFUSE, "refuses")])
def test_a_store_that_fails_for_a_moment_is_asked_again(s3, through, bucket, ends, fault, name):
    proxy, client = through
    proxy.fail(fault, fault)
    stored = artifacts.put_blob(client, bucket, "p", BLOB)
    wrote = list(proxy.met)
    proxy.fail(fault, fault)
    assert artifacts.get_blob(client, bucket, stored.key, stored.sha256) == BLOB
    assert wrote[:2] == proxy.met[:2] == [fault, fault]
    assert len(artifacts.list_versions(s3, bucket)) == 1
    ends(
        f"S3 {name} twice",
        "written and read, 3 attempts each",
        "the same call succeeds; one version in the store",
        "none: the bytes came back",
    )


@pytest.mark.parametrize(("fault", "name"), [(ERROR, "answers 500"), (REFUSE, "refuses")])
def test_a_store_that_stays_away_is_named_and_shows_nothing(s3, through, bucket, ends, fault, name):
    proxy, client = through
    proxy.fail(after=fault)
    with pytest.raises(StorageUnavailableError, match=proxy.address) as caught:
        artifacts.put_blob(client, bucket, "p", BLOB)
    assert is_retried(caught.value)
    assert len(proxy.met) == 4
    assert artifacts.list_versions(s3, bucket) == []
    proxy.fail()
    stored = artifacts.put_blob(client, bucket, "p", BLOB)
    assert artifacts.get_blob(s3, bucket, stored.key, stored.sha256) == BLOB
    ends(
        f"S3 {name} for good",
        "one call, 4 attempts",
        "one retryable error with the address; nothing written",
        "none: the next call wrote it",
    )


def test_a_store_that_refuses_our_keys_is_not_asked_again(s3, through, bucket, ends):
    proxy, _ = through
    wrong = open_client(proxy.address, seaweed.credentials(settings().home)[0], "not-the-secret", seaweed.REGION)
    stored = artifacts.put_blob(s3, bucket, "p", BLOB)
    proxy.fail()
    calls = (
        lambda: artifacts.put_blob(wrong, bucket, "p", b"other"),
        lambda: artifacts.get_blob(wrong, bucket, stored.key, stored.sha256),
        lambda: artifacts.purge_keys(wrong, bucket, [stored.key]),
    )
    for call in calls:
        with pytest.raises(
            StorageRefusedError, match=rf"{proxy.address} refused s3://{bucket}/p/.*these keys"
        ) as caught:
            call()
        assert not is_retried(caught.value)
        assert "not-the-secret" not in str(caught.value)
        assert caught.value.__cause__.response["ResponseMetadata"]["RetryAttempts"] == 0
    assert [version.key for version in artifacts.list_versions(s3, bucket)] == [stored.key]
    ends(
        "S3 refuses our keys",
        "a write, a read, a purge",
        "one error each with the object, after one attempt; nothing changed",
        "none: nothing was written or removed",
    )


def test_an_answer_that_is_cut_is_never_taken_for_the_blob(s3, through, bucket, ends):
    proxy, client = through
    stored = artifacts.put_blob(s3, bucket, "p", BLOB)
    proxy.cut_after = 100_000
    proxy.fail(after=CUT)
    with pytest.raises(StorageUnavailableError) as caught:
        artifacts.get_blob(client, bucket, stored.key, stored.sha256)
    assert is_retried(caught.value)
    proxy.fail()
    assert artifacts.get_blob(client, bucket, stored.key, stored.sha256) == BLOB
    ends(
        "S3 cuts every answer in the middle of a blob",
        "one read",
        "one retryable error; no part of a blob is taken for it",
        "none: the next read was whole",
    )


def test_a_slow_store_is_waited_for(through, bucket, ends):
    proxy, client = through
    proxy.delay = 0.5
    proxy.fail()
    stored = artifacts.put_blob(client, bucket, "p", BLOB)
    assert artifacts.get_blob(client, bucket, stored.key, stored.sha256) == BLOB
    ends("S3 takes half a second to answer", "written and read", "waited for", "none: the bytes came back")


@pytest.fixture
def learning(s3, backbone, inbox, set_variable):
    """A stream with a champion and a second batch that waits, in a home that reaches S3 through a proxy."""
    access, secret = seaweed.credentials(settings().home)
    with before(s3.meta.endpoint_url) as proxy:
        for name, value in (("S3_ENDPOINT", proxy.address), ("S3_ACCESS_KEY", access), ("S3_SECRET_KEY", secret)):
            set_variable(name, value)
        stream = make_stream(f"store-{uuid.uuid4().hex[:8]}", backbone, inbox)
        deliver(inbox, "batch-0", ["red", "blue"])
        learn(stream)
        deliver(inbox, "batch-1", ["green", "gold"])
        yield proxy, stream


def failing(monkeypatch, proxy, *faults, after=PASS):
    """The proxy fails once the second batch is about to be stored."""
    store = artifacts.put_blob

    def put(*args, **kwargs):
        monkeypatch.setattr(artifacts, "put_blob", store)
        proxy.fail(*faults, after=after)
        return store(*args, **kwargs)

    monkeypatch.setattr(artifacts, "put_blob", put)


def serving(stream) -> tuple[int, int, int]:
    """Champion, versions, and batches that are not finished."""
    (found,) = queries.status(stream.name)
    return found["champion"], found["versions"], len(found["unfinished"])


@pytest.mark.faults
@pytest.mark.usefixtures("ready")
def test_a_run_outlasts_a_store_that_fails_for_a_moment(learning, monkeypatch, ends):
    proxy, stream = learning
    failing(monkeypatch, proxy, ERROR, ERROR)
    assert len(learn(stream)) == 1
    assert proxy.met[:2] == [ERROR, ERROR]
    assert serving(stream) == (2, 2, 0)
    ends("S3 answers 500 twice during `learn`", "one run", "the run completes", "none: one version a batch")


@pytest.mark.faults
@pytest.mark.usefixtures("ready")
def test_a_run_without_a_store_is_one_error_and_is_then_completed(learning, monkeypatch, ends):
    proxy, stream = learning
    failing(monkeypatch, proxy, after=REFUSE)
    with pytest.raises(StorageUnavailableError, match=proxy.address):
        learn(stream)
    assert serving(stream)[:2] == (1, 1), "nothing of the second batch serves"
    proxy.fail()
    learn(stream)
    assert serving(stream) == (2, 2, 0)
    ends(
        "S3 refuses from the first blob of a batch on during `learn`",
        "one run with its repetitions, then another",
        "one error with the address, the version before serves; the next run completes",
        "none: one version a batch",
    )


FULL = """
import resource, signal, sys
from pathlib import Path
from registry.errors import StorageUnavailableError
from tasks.disk_cache import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1]) / "blob"
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    write_whole(path, b"x" * 100_000)
except StorageUnavailableError as error:
    print(error)
assert list(path.parent.iterdir()) == []
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
write_whole(path, b"x" * 100_000)
assert path.read_bytes() == b"x" * 100_000
"""


def test_a_disk_that_is_full_leaves_no_half_file(tmp_path, ends):
    """A limit on the size of a file stands for the disk: the write fails in the middle in the same way."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], check=True, stdout=subprocess.PIPE, text=True)
    assert "cannot write" in done.stdout
    assert "free some space" in done.stdout
    ends(
        "a cache's disk is full (a limit on a file's size stands for it)",
        "one write",
        "one error with the path; no half file",
        "none: the same write worked once there was space",
    )
