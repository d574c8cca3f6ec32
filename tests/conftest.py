"""What all tests share: one home folder and one SeaweedFS a session."""

import os
import uuid

import pytest

from infra import storage
from infra.settings import settings


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """The temporary DECIDUOUS_HOME of this session; nothing of the developer's own is read or written."""
    path = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("DECIDUOUS_")]:
        del os.environ[name]
    os.environ["DECIDUOUS_HOME"] = str(path)
    settings.cache_clear()
    return path


@pytest.fixture(scope="session")
def s3(home):  # noqa: ARG001 - the home comes first
    """Client of the session's SeaweedFS, with both buckets."""
    storage.ensure_buckets()
    return storage.s3()


@pytest.fixture(scope="session")
def mlflow_client(s3):  # noqa: ARG001 - MLflow's artifacts go there
    """Client of the session's MLflow database."""
    from infra import tracking  # noqa: PLC0415 - importing MLflow takes seconds, most tests need none

    return tracking.prepare_tracking()


@pytest.fixture
def bucket(s3):
    """A versioned bucket of the test's own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


@pytest.fixture
def set_variable(monkeypatch):
    """Sets a DECIDUOUS_ variable and reads the settings anew; the session's come back afterwards."""

    def change(name, value):
        monkeypatch.setenv(f"DECIDUOUS_{name}", str(value))
        settings.cache_clear()

    yield change
    monkeypatch.undo()
    settings.cache_clear()
