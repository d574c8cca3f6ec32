"""Who opens MLflow's database first makes its tables, alone; aliases move in them as its client moves them."""

import fcntl
import os

import boto3
import pytest

from infra import alias_client, tracking
from infra.errors import UnreachableError, UnwritableError
from infra.settings import settings
from infra.stored_aliases import StoredAliases
from registry import aliases
from registry.errors import UnknownIdError


def test_a_client_is_made_while_no_other_process_makes_one(tmp_path, monkeypatch, set_variable):
    """MLflow's client migrates the database when it is made, not when it is first asked."""
    set_variable("HOME", tmp_path)
    told = []

    class Client:
        def __init__(self, *_):
            with (settings().home / "mlflow.lock").open("a+") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            told.append("made")

        def search_experiments(self, **_):
            told.append("asked")

    monkeypatch.setattr(tracking, "MlflowClient", Client)
    tracking._client.__wrapped__(settings())
    assert told == ["made", "asked"]


@pytest.mark.usefixtures("s3")
def test_what_mlflow_stores_goes_by_the_keys_of_this_home(tmp_path, monkeypatch, set_variable):
    """A variable may come back while the session of another home stays: that one's keys are of no use here."""
    tracking.prepare_tracking()
    own = {name: os.environ[name] for name in tracking.KEYS}
    set_variable("HOME", tmp_path)
    tracking.prepare_tracking()
    assert boto3.DEFAULT_SESSION.get_credentials().access_key != own["AWS_ACCESS_KEY_ID"]
    monkeypatch.undo()
    settings.cache_clear()
    os.environ.update(own)
    tracking.prepare_tracking()
    assert boto3.DEFAULT_SESSION.get_credentials().access_key == own["AWS_ACCESS_KEY_ID"]


def moves_agree(client, other, model):
    """What the other moves, MLflow's client sees, and the other way round."""
    client.create_registered_model(model)
    for _ in range(2):
        client.create_model_version(model, "s3://deciduous/mlflow")
    assert aliases.find_alias(other, model, "champion") is None
    assert aliases.find_alias(other, "no-such-model", "champion") is None
    for version in (1, 2, 1):
        aliases.set_alias(other, model, "champion", version)
        assert aliases.find_alias(other, model, "champion") == version
        assert aliases.find_alias(client, model, "champion") == version
    aliases.move_alias(other, model, "champion", 2, "since today by Ann: it's better, 5 % of it")
    assert client.get_model_version(model, "2").tags["deciduous.champion"].endswith("5 % of it")
    aliases.move_alias(other, model, "champion", 1, "since today by Bob")
    assert client.get_model_version(model, "1").tags == {"deciduous.champion": "since today by Bob"}
    assert client.get_model_version(model, "1").aliases == ["champion"]
    assert client.get_model_version(model, "2").tags == {}
    aliases.move_alias(client, model, "champion", 2, "by the client")
    assert aliases.find_alias(other, model, "champion") == 2
    with pytest.raises(UnknownIdError, match=f"{model} version 7"):
        aliases.set_alias(other, model, "champion", 7)
    for _ in range(2):
        aliases.move_alias(other, model, "champion", None, "")
    assert aliases.find_alias(client, model, "champion") is None
    assert client.get_model_version(model, "1").tags == client.get_model_version(model, "2").tags == {}


def test_aliases_move_in_the_tables_as_the_client_moves_them(tmp_path, set_variable):
    set_variable("HOME", tmp_path)
    client, stored = tracking.prepare_tracking(), alias_client.open_client()
    assert isinstance(stored, StoredAliases)
    moves_agree(client, stored, "by-tables")


def test_the_client_makes_tables_that_are_not_there(tmp_path, set_variable):
    """A restored catalog may come before its MLflow."""
    set_variable("HOME", tmp_path)
    assert aliases.find_alias(alias_client.open_client(), "mail", "champion") is None


def test_a_database_that_fails_is_named_with_what_to_do(tmp_path):
    tables = StoredAliases(f"sqlite:///{tmp_path}")  # a folder where the file should be
    with pytest.raises(UnwritableError, match=f"MLflow's database in {tmp_path} cannot be written"):
        tables.set_registered_model_alias("mail", "champion", "1")
    gone = StoredAliases("postgresql+psycopg://who:secret@127.0.0.1:9/mlflow")
    with pytest.raises(UnreachableError, match="check DECIDUOUS_MLFLOW_TRACKING_URI") as caught:
        aliases.find_alias(gone, "mail", "champion")
    assert "secret" not in str(caught.value)


def test_the_database_of_a_server_that_is_away_is_named(set_variable):
    set_variable("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    set_variable("MLFLOW_DATABASE_URL", "postgresql+psycopg://who:secret@127.0.0.1:9/mlflow")
    named = r"(?s)MLflow's database at .*who:\*\*\*@.* check DECIDUOUS_MLFLOW_DATABASE_URL"
    with pytest.raises(UnreachableError, match=named), tracking.backend():
        pass
