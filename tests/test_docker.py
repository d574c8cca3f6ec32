"""No engine runs in CI: the files are linted, checked against the schema, and the scripts run as they are."""

import itertools
import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from infra.workers import PoolType, job_template

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
BIN = Path(sysconfig.get_path("scripts"))
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
OWN = {name: service for name, service in COMPOSE["services"].items() if "build" in service}


def run(*command, **options):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, **options).stdout


def test_dockerfiles_pass_the_linter_and_compose_its_schema():
    assert len(DOCKERFILES) == 2
    assert run(BIN / "hadolint", *DOCKERFILES) == ""
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_image_is_pinned_runs_as_nobody_special_and_copies_what_is_there(file):
    text = file.read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        for name, value in arguments.items():
            image = image.replace(f"${{{name}}}", value)  # noqa: PLW2901
        assert re.search(r":\d[\w.-]+$", image), f"{image} is not pinned"
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["10001:10001"]
    sources = re.findall(r"^COPY (?:--chmod=\d+ )?([^-\s]\S*(?: \S+)*) \S+$", text, re.MULTILINE)
    ignored = (DOCKER / f"{file.name}.dockerignore").read_text()
    for source in " ".join(sources).split():
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_no_image_compiles_at_every_start_what_its_user_cannot_write_back():
    for file in DOCKERFILES:
        before_install, _ = file.read_text().split("uv pip install", 1)
        assert "UV_COMPILE_BYTECODE=1" in before_install
    own = (DOCKER / "worker.Dockerfile").read_text()
    assert own.index("COPY benchmarks") < own.index("compileall") < own.index("USER")


def test_a_command_in_the_worker_s_image_ends_in_a_message_not_in_a_traceback(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "DECIDUOUS_HOME": str(tmp_path),
    }
    command = ["sh", str(DOCKER / "deciduous.sh"), "rollback", "nobody"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert "no stream 'nobody'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Usage: deciduous rollback" in run("sh", DOCKER / "deciduous.sh", "rollback", "--help", env=environment)


def test_every_service_is_pinned_healthy_and_cannot_gain_rights():
    for name, service in COMPOSE["services"].items():
        assert "healthcheck" in service or name.endswith("-worker"), name  # the worker's is in its image
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for service in OWN.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpu-worker", "gpu-worker"} <= set(OWN)
    for kind, pool in itertools.product([PoolType.DOCKER, PoolType.KUBERNETES], ["cpu", "gpu"]):
        image = job_template(kind, pool)["variables"]["properties"]["image"]["default"]
        assert image == OWN[f"{pool}-worker"]["image"]
        assert f"-t {image} ." in (DOCKER / "worker.Dockerfile").read_text()
    assert OWN["gpu-worker"]["build"]["args"]["BASE"].startswith("nvidia/cuda:")


def test_secrets_come_by_file_and_none_is_a_variable(tmp_path):
    run("sh", DOCKER / "make-secrets.sh", tmp_path / "secrets")
    drawn = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    assert {f"./secrets/{name}" for name in drawn} == {each["file"] for each in COMPOSE["secrets"].values()}
    assert all(len(value) >= 32 for value in drawn.values())
    used = [each for service in COMPOSE["services"].values() for each in service.get("secrets", [])]
    assert {each["source"] if isinstance(each, dict) else each for each in used} == set(COMPOSE["secrets"])
    for service in COMPOSE["services"].values():
        named = set(service.get("environment", {}))
        assert not any(re.search(r"PASSWORD$|SECRET|_KEY$|DATABASE_URL", name) for name in named)
    run("sh", DOCKER / "make-secrets.sh", tmp_path / "secrets")
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == drawn


def test_entrypoint_turns_files_into_variables(tmp_path):
    (tmp_path / "DECIDUOUS_HASH_KEY").write_text("with $ and 'quotes'\n")
    environment = {**os.environ, "SECRETS": str(tmp_path)}
    assert run("sh", DOCKER / "entrypoint.sh", "printenv", "DECIDUOUS_HASH_KEY", env=environment) == (
        "with $ and 'quotes'\n"
    )
    run("sh", DOCKER / "entrypoint.sh", "true", env={**environment, "SECRETS": str(tmp_path / "none")})


def test_settings_are_named_as_the_code_reads_them():
    from infra.settings import Settings  # noqa: PLC0415

    targets = {each["target"] for s in OWN.values() for each in s.get("secrets", []) if isinstance(each, dict)}
    names = {*targets, *(name for service in OWN.values() for name in service.get("environment", {}))}
    ours = {name.removeprefix("DECIDUOUS_").lower() for name in names if name.startswith("DECIDUOUS_")}
    assert ours <= set(Settings.model_fields)
    assert {"database_url", "hash_key", "mlflow_password"} <= ours
