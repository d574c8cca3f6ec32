"""The embedded S3 is shared, found again, survives a kill, ends with its last user and forgets on disk."""

import os
import shutil
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import psutil
import pytest
from botocore.stub import Stubber

from infra import seaweed, services, storage, tracking
from infra.children import this_process
from infra.errors import RefusedError, UnreachableError, UnwritableError
from infra.s3 import open_client
from infra.settings import settings
from tasks import source
from tasks.opening import open_home

ROOT = Path(seaweed.__file__).resolve().parent.parent
JOIN = """
import sys
from pathlib import Path
from infra import seaweed
home = Path(sys.argv[1])
server = seaweed.connect(home)
client = seaweed.client(home, server)
print(server.child.pid, server.endpoint, flush=True)
for order in sys.stdin:
    verb, _, body = order.strip().partition(" ")
    if verb == "put":
        client.put_object(Bucket=seaweed.PROBE_BUCKET, Key="kept", Body=body.encode())
    print(client.get_object(Bucket=seaweed.PROBE_BUCKET, Key="kept")["Body"].read().decode(), flush=True)
"""


class User:
    """Another process that uses the server of a home."""

    def __init__(self, home):
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOIN, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def answer(self, order=""):
        if order:
            print(order, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def leave(self):
        self.process.communicate()
        assert self.process.returncode == 0


def test_processes_share_one_server_that_ends_with_the_last_and_keeps_its_data(tmp_path):
    first, second = User(tmp_path), User(tmp_path)  # a race for the start
    address = first.answer()
    assert address == second.answer()
    assert first.answer("put hello") == second.answer("get") == "hello"
    first.leave()
    assert seaweed.find(tmp_path) is not None
    second.leave()
    assert seaweed.find(tmp_path) is None

    again = User(tmp_path)
    assert again.answer().split()[0] != address.split()[0]
    assert again.answer("get") == "hello"
    seaweed.hold(tmp_path)
    assert seaweed.is_kept(tmp_path)
    again.leave()
    seaweed.leave(tmp_path)
    held = seaweed.find(tmp_path)
    assert held is not None
    seaweed.release(tmp_path)
    assert not held.child.is_alive()
    assert seaweed._sockets(held) == []


def test_a_killed_user_does_not_count_and_a_killed_server_is_replaced(tmp_path):
    user = User(tmp_path)
    pid = int(user.answer().split()[0])
    user.process.kill()
    user.process.communicate()
    assert seaweed.users(tmp_path) == []
    assert seaweed.connect(tmp_path).child.pid == pid
    seaweed.stop_now(tmp_path)
    replaced = seaweed.connect(tmp_path)
    assert replaced.child.pid != pid
    assert not seaweed.is_kept(tmp_path)
    seaweed.leave(tmp_path)
    assert not replaced.child.is_alive()


def test_a_disk_too_full_for_the_server_is_told_before_one_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(seaweed, "LEAST_FREE", 1)
    with pytest.raises(UnwritableError, match=r"embedded S3 in .*home/s3 .*MiB are free, less than .*free some space"):
        seaweed.connect(tmp_path / "home")
    assert seaweed.find(tmp_path / "home") is None


def test_a_write_that_a_known_bucket_refuses_is_no_readiness():
    """It ended in a traceback of botocore's, with the server left running."""
    client = open_client("http://127.0.0.1:1", "key", "secret", "us-east-1")
    with Stubber(client) as answers:
        answers.add_client_error("create_bucket", "BucketAlreadyOwnedByYou")
        answers.add_client_error("put_object", "InternalError")
        assert not seaweed._accepts_writes(client)


def test_a_server_ends_with_its_user_where_the_home_was_deleted_under_it(tmp_path):
    user = User(tmp_path / "home")
    pid = int(user.answer().split()[0])
    shutil.rmtree(tmp_path / "home")
    user.leave()
    assert not psutil.pid_exists(pid)


def test_server_is_private_to_loopback_and_its_owner(s3, home):
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(seaweed.find(home).child.pid).net_connections()
        if connection.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}
    assert stat.S_IMODE((home / "s3" / "s3.json").stat().st_mode) == 0o600
    assert seaweed.credentials(home)[1] not in (home / "s3" / "seaweedfs.log").read_text()
    wrong = storage.open_client(s3.meta.endpoint_url, seaweed.credentials(home)[0], "wrong", "us-east-1", attempts=1)
    with pytest.raises(wrong.exceptions.ClientError, match=r"SignatureDoesNotMatch|AccessDenied|Forbidden"):
        wrong.list_buckets()
    _master, volume, filer, _s3 = seaweed.find(home).ports
    for address in (f"http://127.0.0.1:{filer}/buckets/readiness/probe", f"http://127.0.0.1:{volume}/1,01637037d6"):
        with pytest.raises(HTTPError, match="401"):
            urllib.request.urlopen(address, timeout=10)


def test_both_buckets_are_versioned(s3):
    storage.ensure_buckets()
    for bucket in (settings().artifact_bucket, settings().inbox_bucket):
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"


def test_purged_bytes_leave_the_disk_only_after_compaction(s3, home):
    body = os.urandom(3000) + b"sUbJeCt-marker" + os.urandom(3000)  # random: the server compresses what it can
    version = s3.put_object(Bucket="inbox", Key="purged", Body=body)["VersionId"]
    s3.put_object(Bucket="inbox", Key="kept", Body=b"neighbour")
    s3.delete_object(Bucket="inbox", Key="purged", VersionId=version)

    def on_disk():
        return any(b"sUbJeCt-marker" in path.read_bytes() for path in (home / "s3" / "data").glob("inbox_*.dat"))

    assert on_disk()  # the negative control
    assert storage.compact() > len(body)
    assert not on_disk()
    assert s3.get_object(Bucket="inbox", Key="kept")["Body"].read() == b"neighbour"


def test_a_copy_of_a_home_has_a_server_of_its_own_and_a_moved_one_keeps_its_own(s3, home, tmp_path):
    assert s3 is not None
    server, note = seaweed.find(home), Path("s3") / "server.json"
    services.save_services(tmp_path / "first", [services.Service("mlflow", this_process(), "", "")])
    (tmp_path / "first" / "s3").mkdir()
    shutil.copy(home / note, tmp_path / "first" / note)
    assert seaweed.find(tmp_path / "first") is None
    seaweed.stop_now(tmp_path / "first")
    assert seaweed.find(home) == server
    (tmp_path / "by another path").symlink_to(home)
    assert seaweed.find(tmp_path / "by another path") == server

    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert services.load_services(tmp_path / "copy") == []
    (tmp_path / "first").rename(tmp_path / "moved")
    assert [each.name for each in services.load_services(tmp_path / "moved")] == ["mlflow"]


def test_s3_that_is_down_names_endpoint_and_remedy(set_variable):
    set_variable("S3_ENDPOINT", "http://127.0.0.1:9")
    set_variable("S3_ACCESS_KEY", "a")
    set_variable("S3_SECRET_KEY", "s3cret")
    for ask in (storage.ensure_buckets, storage.missing):
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9.*DECIDUOUS_S3_ENDPOINT") as caught:
            ask()
        assert "s3cret" not in str(caught.value)
    assert storage.compact() is None


def test_keys_that_are_refused_are_named_as_that(s3, home, set_variable):
    """Not as a server that does not answer, which is asked again."""
    set_variable("S3_ENDPOINT", s3.meta.endpoint_url)
    set_variable("S3_ACCESS_KEY", seaweed.credentials(home)[0])
    set_variable("S3_SECRET_KEY", "not-the-secret")
    for ask in (storage.ensure_buckets, storage.prepare_buckets, lambda: list(source.list_objects("s3://inbox/in/"))):
        with pytest.raises(RefusedError, match=r"at http.* refused: .*DECIDUOUS_S3_ACCESS_KEY") as caught:
            ask()
        assert "not-the-secret" not in str(caught.value)


def test_mlflow_whose_upload_is_refused_says_so(s3, home, tmp_path, set_variable):
    set_variable("HOME", tmp_path)
    open_home()
    client = tracking.prepare_tracking()
    run_id = client.create_run(tracking.experiment(client, "refused")).info.run_id
    # by another name: MLflow keeps a client for each address, keys and all
    set_variable("S3_ENDPOINT", s3.meta.endpoint_url.replace("127.0.0.1", "localhost"))
    set_variable("S3_ACCESS_KEY", seaweed.credentials(home)[0])
    set_variable("S3_SECRET_KEY", "not-the-secret")
    client = tracking.prepare_tracking()
    with pytest.raises(RefusedError, match=r"S3 at http.* refused: .*DECIDUOUS_S3_ACCESS_KEY"), tracking.asking():
        client.log_text(run_id, "text", "name.txt")


def test_mlflow_writes_with_the_keys_of_the_home_in_use(set_variable, tmp_path):
    for name in ("first", "second"):
        set_variable("HOME", tmp_path / name)
        open_home()
        client = tracking.prepare_tracking()
        run_id = client.create_run(tracking.experiment(client, "keys")).info.run_id
        client.log_text(run_id, name, "name.txt")
        listed = storage.s3().list_objects_v2(Bucket=settings().artifact_bucket, Prefix=f"mlflow/{run_id}/")
        assert [entry["Key"].rsplit("/", 1)[-1] for entry in listed["Contents"]] == ["name.txt"]
