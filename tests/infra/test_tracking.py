"""Who opens MLflow's database first makes its tables, alone."""

import fcntl

import pytest

from infra import tracking
from infra.settings import settings


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
