"""The doctor finds what would break, says what to do, and leaves nothing behind."""

import os
import uuid
from importlib.metadata import version
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError
from sqlalchemy import text

from infra import database, seaweed, storage
from infra.doctor import servers
from infra.doctor.examination import examine
from infra.errors import BucketError, RefusedError, SchemaError
from infra.settings import settings
from registry.artifacts import list_versions


@pytest.fixture(autouse=True)
def no_prefect(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.fixture
def own_home(tmp_path, set_variable):
    set_variable("HOME", tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def given_s3(s3, home, own_home, set_variable):
    """The session's S3 as if it were an organisation's: an address, keys, and buckets that we did not make."""
    assert own_home != home
    access, secret = seaweed.credentials(home)
    names = {"ARTIFACT_BUCKET": f"a-{uuid.uuid4().hex[:12]}", "INBOX_BUCKET": f"i-{uuid.uuid4().hex[:12]}"}
    keys = {"S3_ENDPOINT": s3.meta.endpoint_url, "S3_ACCESS_KEY": access, "S3_SECRET_KEY": secret}
    for name, value in {**names, **keys}.items():
        set_variable(name, value)
    return names["ARTIFACT_BUCKET"]


def found(part):
    return [
        (str(finding.health), f"{finding.found} -> {finding.remedy}") for finding in examine() if finding.part == part
    ]


def healths(part):
    return [health for health, _ in found(part)]


def test_empty_home_is_fine_and_stays_empty(own_home):
    assert {finding.health for finding in examine()} == {"ok"}
    assert not own_home.exists()


@pytest.mark.usefixtures("own_home")
def test_grants_that_cannot_be_read_hold_an_odd_entry_or_are_nobodys_are_told(set_variable, tmp_path):
    assert healths("grants") == ["ok"]
    set_variable("ENTITLEMENTS", tmp_path / "grants.yaml")
    assert healths("grants") == ["error"]
    (tmp_path / "grants.yaml").write_text("mail: {ann: [sales], bob: sales}")
    ((health, line),) = found("grants")
    assert health == "error"
    assert "those of stream 'mail' (entry 2 of 2) are not of the form `caller: [group]`" in line
    (tmp_path / "grants.yaml").write_text("mail: {ann: [sales], bob:}\nmemos:")
    ((health, line),) = found("grants")
    assert health == "ok"
    assert "grants.yaml: 2 callers of 2 streams" in line
    set_variable("ENTITLEMENTS", "")
    set_variable("DATABASE_URL", "postgresql+psycopg://u:p@127.0.0.1:1/d")
    assert [line.split(" before")[0] for _, line in found("grants")] == ["no file: nobody is answered"]
    set_variable("REQUIRE_ENTITLEMENTS", "false")
    assert healths("grants") == ["warning"]


def test_a_catalog_that_takes_no_writes_is_an_error(own_home, monkeypatch):
    database.migrate()
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != f"{own_home}/catalog.db" and may(path, mode))
    assert any(health == "error" and "catalog.db cannot be written" in line for health, line in found("catalog"))


def test_catalog_that_is_behind_is_due_and_one_that_is_ahead_is_an_error(own_home):
    assert str(own_home) in settings().database_url
    with database.transaction() as session:
        session.execute(text("create table alembic_version (version_num varchar(32))"))
    assert any(health == "warning" and "is due" in line for health, line in found("catalog"))
    database.migrate()
    assert healths("catalog") == ["ok", "ok"]
    with database.transaction() as session:
        session.execute(text("update alembic_version set version_num = '9999'"))
    assert any(health == "error" and "newer than this code" in line for health, line in found("catalog"))
    with pytest.raises(SchemaError, match="newer than this code"):
        database.migrate()


def test_bucket_without_versions_is_refused_with_the_command_and_migrate_mends_it(given_s3):
    with pytest.raises(BucketError, match=r"create-bucket --bucket a-.*put-bucket-versioning"):
        storage.ensure_buckets()
    storage.s3().create_bucket(Bucket=given_s3)
    artifacts_line = found("s3")[0][1]
    assert "put-bucket-versioning" in artifacts_line
    assert "create-bucket" not in artifacts_line
    storage.prepare_buckets()
    storage.ensure_buckets()
    assert set(healths("s3")) == {"ok"}
    assert len(storage.lifecycle_rules(given_s3)) == 2


def test_probe_of_a_bucket_leaves_nothing(given_s3):
    storage.prepare_buckets()
    assert healths("s3") == ["ok", "ok", "ok"]
    assert list_versions(storage.s3(), given_s3) == []


def test_keys_that_may_only_read_are_told_of_each_bucket(given_s3, monkeypatch):
    storage.prepare_buckets()

    def refuse(**_):
        answer = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        raise ClientError(answer, "PutObject")

    monkeypatch.setattr(storage.s3(), "put_object", refuse)
    told = [line for health, line in found("s3") if health == "error"]
    assert [given_s3 in line for line in told] == [True, False]
    assert all("refused: AccessDenied" in line and "the keys" in line for line in told)
    monkeypatch.setattr(storage.s3(), "head_bucket", refuse)
    with pytest.raises(RefusedError, match=f"bucket {given_s3} at .* refused: AccessDenied"):
        storage.ensure_buckets()


def test_encryption_is_asked_for_with_every_write(given_s3, set_variable):
    set_variable("S3_ENCRYPTION", "AES256")
    storage.prepare_buckets()
    client = storage.s3()
    client.put_object(Bucket=given_s3, Key="k", Body=b"x")
    assert client.head_object(Bucket=given_s3, Key="k")["ServerSideEncryption"] == "AES256"
    assert client.get_object(Bucket=given_s3, Key="k")["Body"].read() == b"x"


def test_keys_come_from_where_aws_tools_read_them(given_s3, set_variable, monkeypatch, tmp_path, home):
    storage.prepare_buckets()
    access, secret = seaweed.credentials(home)
    profile = tmp_path / "credentials"
    profile.write_text(f"[work]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_PROFILE", "work")
    set_variable("S3_ACCESS_KEY", "")
    set_variable("S3_SECRET_KEY", "")
    assert storage.keys() == (None, None)
    # boto3's default session was made before this profile was
    client = boto3.Session().client("s3", endpoint_url=settings().s3_endpoint)
    assert client.get_bucket_versioning(Bucket=given_s3)["Status"] == "Enabled"
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert storage.missing_in(given_s3) is None
    set_variable("S3_ACCESS_KEY", "wrong")
    set_variable("S3_SECRET_KEY", "wrong")
    with pytest.raises(ClientError, match=r"403|Forbidden|InvalidAccessKeyId"):
        storage.missing_in(given_s3)


def test_servers_that_do_not_answer_do_not_stop_the_examination(own_home, set_variable, monkeypatch):
    set_variable("DATABASE_URL", "postgresql+psycopg://u:s3cret@127.0.0.1:9/d")
    set_variable("S3_ENDPOINT", "http://127.0.0.1:9")
    set_variable("S3_ACCESS_KEY", "a")
    set_variable("S3_SECRET_KEY", "s3cret")
    set_variable("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    findings = examine()
    assert [finding.part for finding in findings if finding.health == "error"] == ["catalog", "s3", "mlflow", "prefect"]
    assert not any("s3cret" in finding.found for finding in findings)
    assert not own_home.exists()


@pytest.mark.usefixtures("own_home")
def test_the_remedies_for_pools_are_whole_commands(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(servers, "call_api", lambda *_: version("prefect"))
    monkeypatch.setattr(servers, "pool_names", lambda _: {"cpu"})
    monkeypatch.setattr(servers, "online_workers", lambda *_: [])
    assert [finding.remedy for finding in servers.examine_prefect()][1:] == [
        "deciduous worker cpu",
        "deciduous deploy FILE",
    ]


def test_home_that_others_can_enter_is_named_with_the_remedy(own_home):
    own_home.mkdir(mode=0o755)
    assert any(health == "warning" and "chmod 700" in line for health, line in found("home"))


@pytest.mark.parametrize(("free", "health"), [(9, "error"), (11, "warning"), (13, "ok")])
def test_the_space_that_the_embedded_s3_leaves_free_is_not_counted(own_home, monkeypatch, free, health):
    own_home.mkdir(mode=0o700)
    usage = SimpleNamespace(total=1000 * 2**30, free=free * 2**30)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert [(health, True)] == [
        (h, "below 10.0 GiB the embedded S3 takes no writes" in line) for h, line in found("home")
    ]


def test_a_file_of_another_user_is_named_with_what_to_do(own_home, monkeypatch):
    def refuse():
        raise PermissionError(13, "Permission denied", str(own_home / "stack.json"))

    monkeypatch.setattr(servers, "api_address", refuse)
    ((health, line),) = found("prefect")
    assert health == "error"
    assert line.startswith(f"{own_home}/stack.json cannot be read: Permission denied -> run as the user")
