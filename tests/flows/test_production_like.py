"""The main job on the servers that an organisation has: PostgreSQL under all of it, MLflow behind a login, workers."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from base64 import b64encode
from io import BytesIO
from itertools import islice
from pathlib import Path
from urllib.error import HTTPError

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from infra import postgres
from infra.errors import StartError
from infra.s3 import open_client
from infra.settings import Settings, served_file
from tasks import newsroom
from tests.flows import pages
from tests.flows.server import until

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-W", "error", "-c", "from flows.cli import main; main()"]
try:
    postgres.find_binaries()
    found = True
except StartError:
    found = False
pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not found, reason="needs PostgreSQL's initdb and postgres"),
]


class Home:
    """A home of its own whose every command is a process, as a user's are."""

    def __init__(self, folder):
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DECIDUOUS_", "PREFECT_", "MLFLOW_", "AWS_"))}
        self.environment = {**kept, "DECIDUOUS_HOME": str(folder), "PYTHONPATH": str(ROOT)}

    def call(self, *arguments, code=0):
        done = subprocess.run(
            [*CLI, *map(str, arguments)], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done.stderr if code else done.stdout

    def ask(self, *arguments):
        return json.loads(self.call(*arguments, "--json"))

    @property
    def settings(self):
        return Settings(home=self.folder, _env_file=served_file(self.folder))

    def prefect(self, path, body=None):
        return self.get(f"{self.url('prefect')}/api/{path}", body=body)

    def url(self, name):
        return next(service["url"] for service in self.services if service["name"] == name)

    def ended(self, run_id):
        """The flow run, once it is over."""
        run = self.prefect(f"flow_runs/{run_id}")
        return run if run["state_type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} else None

    def get(self, address, login=None, body=None):
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, content, {"Content-Type": "application/json"})
        if login is not None:
            request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def home():
    # not below pytest's own folder: PostgreSQL's user has to be able to pass
    folder = Path(tempfile.mkdtemp(prefix="deciduous-production-"))
    home = Home(folder)
    home.services = home.ask("up", "--production-like")
    yield home
    ended = home.call("down")
    assert {"postgres", "mlflow", "prefect", "worker-cpu", "worker-gpu"} <= set(ended.replace(",", " ").split())
    assert not any(psutil.pid_exists(service["pid"]) for service in home.services)


@pytest.fixture(scope="module")
def stream(home, tmp_path_factory):
    """The demo's stream file, and the first five of its deliveries taken in by the two workers: the gates keep the
    second and third version waiting, so that the fifth is the first with a champion before it that is not version 1."""
    config = home.settings
    keys = (config.s3_access_key.get_secret_value(), config.s3_secret_key.get_secret_value())
    client = open_client(config.s3_endpoint, *keys, config.s3_region)
    for name, table in islice(newsroom.tables(), 5):
        sink = BytesIO()
        pq.write_table(table, sink)
        client.put_object(Bucket=config.inbox_bucket, Key=f"newsroom/{name}.parquet", Body=sink.getvalue())
    path = tmp_path_factory.mktemp("stream") / "newsroom.yaml"
    path.write_text(yaml.safe_dump(newsroom.STREAM.model_dump(mode="json")))
    home.call("deploy", path)
    run = home.prefect("deployments/name/learn/newsroom")["id"]
    started = home.prefect(f"deployments/{run}/create_flow_run", {})["id"]
    ended = until(lambda: home.ended(started), 1800)  # an interpreter for each hand-over
    assert ended["state_name"] == "Completed", ended["state"]["message"]
    return path


def test_everything_runs_on_loopback_and_the_doctor_is_content(home):
    assert {service["name"] for service in home.services if service["is_running"]} == {
        *("s3", "postgres", "mlflow", "prefect", "worker-cpu", "worker-gpu")
    }
    listening = {
        connection.laddr.ip
        for service in home.services
        for process in (psutil.Process(service["pid"]), *psutil.Process(service["pid"]).children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}
    findings = home.ask("doctor")
    assert [finding for finding in findings if finding["health"] != "ok"] == []
    assert any("PostgreSQL" in finding["found"] for finding in findings)
    assert sum("is served by" in finding["found"] for finding in findings) == 2
    assert home.ask("up") == home.services


def test_mlflow_lets_nobody_in_without_the_password(home):
    address = f"{home.settings.mlflow_tracking_uri}/api/2.0/mlflow/registered-models/search"
    with pytest.raises(HTTPError, match="401"):
        home.get(address)
    with pytest.raises(HTTPError, match="401"):
        home.get(address, "deciduous:wrong")
    assert home.settings.mlflow_password.get_secret_value() not in repr(home.settings)


def test_workers_do_the_main_job_and_leave_versions_behind_the_login_and_artifacts_behind_the_proxy(home, stream):
    assert stream.exists()
    (trained,) = {
        run["work_pool_name"] for run in home.prefect("flow_runs/filter", {"flows": {"name": {"any_": ["train"]}}})
    }
    assert trained == "gpu"
    (status,) = home.ask("status")
    assert (status["batches"], status["unfinished"], status["versions"]) == (5, [], 5)
    config = home.settings
    login = f"deciduous:{config.mlflow_password.get_secret_value()}"
    api = f"{config.mlflow_tracking_uri}/api/2.0/mlflow"
    champion = home.get(f"{api}/registered-models/alias?name=newsroom&alias=champion", login)["model_version"]
    assert int(champion["version"]) == home.ask("status")[0]["champion"]
    run = home.get(f"{api}/runs/get?run_id={champion['run_id']}", login)["run"]
    assert run["info"]["artifact_uri"].startswith("mlflow-artifacts:")
    listed = home.get(f"{api}/artifacts/list?run_id={champion['run_id']}", login)["files"]
    assert {"README.md", "model"} <= {file["path"] for file in listed}


@pytest.mark.skipif(pages.find_browser() is None, reason="needs Chromium")
def test_pages_can_be_read(home, stream, tmp_path):
    """PICTURES=docs writes the pictures of the operator's guide."""
    assert stream.exists()
    folder, config = Path(os.environ.get("PICTURES", tmp_path)), home.settings
    runs = [r for r in home.prefect("flow_runs/filter", {"sort": "END_TIME_DESC"}) if "05-tech" in r["name"]]
    login = f"{config.mlflow_username}:{config.mlflow_password.get_secret_value()}"
    with pages.signed_in(config.mlflow_tracking_uri, login) as server:
        page = f"{server}/#/models/newsroom/versions/5?workflowType=machine_learning"
        shown = ["05-tech-entertainment: ", "held-out accuracy", "registered by the Prefect run", "serving adapter"]
        pages.take_picture(page, folder / "mlflow-version.png", tmp_path / "profile", [*shown, "champion"])
        page = f"{server}/#/models/newsroom?workflowType=machine_learning"
        shown = ["Who moved an alias", "Version 5", "@ champion", "@ previous", "deciduous.change", "05-tech-enter"]
        pages.take_picture(page, folder / "mlflow-model.png", tmp_path / "profile", shown, 900)
    page = f"{home.url('prefect')}/runs/flow-run/{runs[0]['id']}"
    shown = ["newsroom: 05-tech-entertainment", "Completed", "promote-5"]
    pages.take_picture(page, folder / "prefect-run.png", tmp_path / "profile-of-prefect", shown)


def test_rollback_and_a_deletion_reach_every_server(home, stream):
    assert stream.exists()
    before = home.ask("status")[0]["champion"]
    assert f"version {before - 1} again" in home.call("rollback", "newsroom").replace("\n", " ")
    ticket = home.ask("erase", "newsroom", "--subject", "politics-03")
    assert ticket["state"] == "complete"
    certificate = json.loads(Path(ticket["certificate"]).read_text())
    assert certificate["guarantee"] == "E0"
    assert certificate["sweep"]["hits"] == 0
    assert {"database catalog", "database mlflow"} <= set(certificate["sweep"]["by_store"])
    assert certificate["purge"]["mlflow_versions"] > 0


def test_a_backup_of_these_servers_comes_back(home, stream, tmp_path):
    assert stream.exists()
    before = home.ask("status")[0]
    home.call("backup", tmp_path / "backup")
    left = [a["adapter_id"] for a in home.ask("ls", "adapters") if a["state"] in before["adapters"]]
    home.call("retire", left[0])
    assert home.ask("status")[0]["adapters"] != before["adapters"]
    assert "--replace" in home.call("restore", tmp_path / "backup", code=1).replace("\n", " ")
    home.call("restore", tmp_path / "backup", "--replace")
    assert home.ask("status")[0] == before
    assert [finding for finding in home.ask("doctor") if finding["health"] != "ok"] == []
