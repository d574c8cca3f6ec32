"""What all tests share: one home folder and one SeaweedFS a session."""

import atexit
import os
import shutil
import tempfile
import uuid
from pathlib import Path

import pytest

from infra import seaweed, storage
from infra.orchestration import prepare_prefect, without_heartbeat
from infra.settings import settings

# Before any test module imports Prefect: nothing of the developer's own is read or written.
for name in [name for name in os.environ if name.startswith(("DECIDUOUS_", "PREFECT_", "MLFLOW_"))]:
    del os.environ[name]
HOME = Path(tempfile.mkdtemp(prefix="deciduous-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)  # first registered, last run: servers end before it
os.environ["DECIDUOUS_HOME"] = str(HOME)
# models of a test are tiny: a second thread costs more than it gives, and milliseconds a product where cores are busy
os.environ["DECIDUOUS_THREADS"] = "1"
prepare_prefect()


@pytest.fixture(scope="session", autouse=True)
def home():
    """The temporary DECIDUOUS_HOME of this session."""
    return HOME


@pytest.fixture(scope="session")
def s3(home):  # noqa: ARG001 - the home comes first
    """Client of the session's SeaweedFS, with both buckets."""
    storage.ensure_buckets()
    return storage.s3()


@pytest.fixture
def mlflow_client(s3):  # noqa: ARG001 - MLflow's artifacts go there
    """Client of the session's MLflow database, which MLflow is pointed at again after a test of another home."""
    from infra import tracking  # noqa: PLC0415 - importing MLflow takes seconds, most tests need none

    return tracking.prepare_tracking()


@pytest.fixture(scope="session")
def prefect_api(home):  # noqa: ARG001 - Prefect's own state goes there
    """Flows of this session run on one API in a child process, which the first flow starts."""
    with without_heartbeat():
        yield


@pytest.fixture
def bucket(s3):
    """A versioned bucket of the test's own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


@pytest.fixture
def set_variable(monkeypatch):
    """Sets a DECIDUOUS_ variable and reads the settings anew; the session's come back afterwards.

    The S3 of a home of the test's own ends with it.
    """

    def change(name, value):
        monkeypatch.setenv(f"DECIDUOUS_{name}", str(value))
        settings.cache_clear()

    yield change
    if (own := Path(os.environ.get("DECIDUOUS_HOME", HOME))) != HOME:
        seaweed.leave(own)
    monkeypatch.undo()
    settings.cache_clear()
