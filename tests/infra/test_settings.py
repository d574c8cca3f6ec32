"""Settings come from the environment and show no secret; keys are made once and stay private."""

import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import ValidationError

from infra import keys, signing
from infra.errors import KeyFileError, SettingsError
from infra.settings import Settings, settings


@pytest.fixture
def own_home(tmp_path, set_variable):
    """A home of the test's own."""
    set_variable("HOME", tmp_path / "home")
    return tmp_path / "home"


def test_defaults_lie_in_the_home(own_home):
    assert settings().database_url == f"sqlite:///{own_home}/catalog.db"
    assert settings().mlflow_tracking_uri == f"sqlite:///{own_home}/mlflow.db"
    assert settings().s3_endpoint is None
    assert not own_home.exists()


def test_home_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Settings(home="near").home == tmp_path / "near"


def test_empty_variable_means_default(set_variable):
    set_variable("S3_ENDPOINT", "")
    assert Settings().s3_endpoint is None


def test_repr_and_errors_show_no_secret():
    secrets = {
        "s3_access_key": "a",
        "s3_secret_key": "s3cret-one",
        "hash_key": "s3cret-two-long-enough",
        "database_url": "postgresql+psycopg://u:s3cret@h/d",
        "mlflow_tracking_uri": "postgresql+psycopg://u:s3cret@h/d",
    }
    assert "s3cret" not in repr(Settings(**secrets)) + str(Settings(**secrets))
    with pytest.raises(ValidationError) as caught:
        Settings(hash_key="s3cret-short")
    assert "s3cret" not in str(caught.value)


def test_a_wrong_variable_is_named_without_its_value(set_variable):
    set_variable("THREADS", "abc")
    set_variable("HASH_KEY", "s3cret-short")
    with pytest.raises(
        SettingsError, match=r"DECIDUOUS_HASH_KEY: .*DECIDUOUS_THREADS: Input should be a valid"
    ) as told:
        settings()
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("S3_ENDPOINT", "minio:9000", "DECIDUOUS_S3_ENDPOINT: .*https"),
        ("S3_REGION", "eu west", "DECIDUOUS_S3_REGION: "),
        ("ARTIFACT_BUCKET", "My Bucket", "DECIDUOUS_ARTIFACT_BUCKET: "),
        ("S3_ACCESS_KEY", "alone", "DECIDUOUS_S3_SECRET_KEY: .*set both"),
        ("S3_SECRET_KEY", "alone", "DECIDUOUS_S3_SECRET_KEY: .*set both"),
        ("HOME", "/srv/what?now", "DECIDUOUS_HOME: .*name another folder$"),
        ("MLFLOW_TRACKING_URI", "https://ann:alone@mlflow:5000/", "DECIDUOUS_MLFLOW_TRACKING_URI: .*MLFLOW_USERNAME"),
        ("SECRETS", "/nowhere", "DECIDUOUS_SECRETS: /nowhere is no folder"),
    ],
)
def test_a_value_that_nothing_outside_would_take_is_told_at_once(set_variable, name, value, told):
    set_variable(name, value)
    with pytest.raises(SettingsError, match=told) as caught:
        settings()
    assert "alone" not in str(caught.value)


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        settings().threads = 2


def test_keys_are_made_once_and_private(own_home):
    assert keys.hash_key() == keys.hash_key()
    assert len(keys.hash_key()) == 32
    assert signing.signing_key().sign(b"x") == signing.signing_key().sign(b"x")
    files = list((own_home / "keys").iterdir())
    assert {path.name for path in files} == {"hash.key", "signing.pem"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


@pytest.mark.parametrize("given", [{"INBOX_BUCKET": "deciduous"}, {"ARTIFACT_BUCKET": "inbox"}])
def test_one_bucket_for_both_is_refused(set_variable, given):
    """A stream that read s3://BUCKET/streams/mail/ lost its deliveries to gc, with all their versions."""
    for name, value in given.items():
        set_variable(name, value)
    with pytest.raises(SettingsError, match=r"INBOX_BUCKET: .*is DECIDUOUS_ARTIFACT_BUCKET too.*name another"):
        settings()


def test_a_hash_key_that_is_cut_off_is_refused(own_home):
    keys.hash_key()
    (own_home / "keys" / "hash.key").write_bytes(b"")
    with pytest.raises(KeyFileError, match=r"hash\.key holds 0 bytes .*put your copy"):
        keys.hash_key()


def test_given_hash_key_is_used(own_home, set_variable):
    set_variable("HASH_KEY", "0123456789abcdef")
    assert keys.hash_key() == b"0123456789abcdef"
    assert not own_home.exists()


@pytest.mark.parametrize("content", [None, b"no key", "rsa"])
def test_bad_signing_key_names_the_file_and_the_remedy(own_home, set_variable, tmp_path, content):
    assert not own_home.exists()
    path = tmp_path / "mine.pem"
    if content == "rsa":
        rsa = generate_private_key(65537, 2048)
        content = rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if content is not None:
        path.write_bytes(content)
    set_variable("SIGNING_KEY", path)
    with pytest.raises(KeyFileError, match=r"mine\.pem.*(give|make)"):
        signing.signing_key()


def test_no_retired_key_is_written_over_where_an_older_one_was_moved_away(tmp_path, set_variable):
    set_variable("HOME", tmp_path)
    hashed_with = [keys.hash_key()]
    for _ in range(2):
        keys.rotate_hash_key()
        hashed_with.append(keys.hash_key())
    moved = tmp_path / "keys" / "retired" / "0000.key"
    moved.unlink()
    retired = keys.rotate_hash_key()
    assert retired.name == "0002.key"
    assert keys.hash_keys() == [keys.hash_key(), hashed_with[2], hashed_with[1]]
