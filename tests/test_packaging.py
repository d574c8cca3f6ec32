"""The prescribed top-level names collide with real packages, and two pins matter beyond what pip checks."""

from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version
from sqlalchemy import create_engine
from transformers.utils.import_utils import is_kernels_available

from tasks.packaging import REQUIREMENTS

ROOT = Path(__file__).parents[1]


def test_docker_folder_never_shadows_the_docker_sdk():
    assert not (ROOT / "docker" / "__init__.py").exists()


def test_transformers_does_not_take_our_kernels_for_the_hub_package():
    assert not is_kernels_available()


def test_kernels_root_stays_empty():
    """transformers imports `kernels` while it is itself half imported."""
    assert (ROOT / "kernels" / "__init__.py").read_text() == ""


@pytest.mark.parametrize("package", ["tasks", "registry", "kernels", "infra"])
def test_no_flow_file_shadows_a_package(package):
    """Prefect puts flows/ first on sys.path when it loads a flow by file path."""
    assert not (ROOT / "flows" / f"{package}.py").exists()


@pytest.mark.parametrize(("package", "below"), [("fastapi", "0.151"), ("sqlalchemy", "2.1")])
def test_pins_that_pip_does_not_check(package, below):
    """fastapi 0.151 breaks Prefect's server at import; SQLAlchemy 2.1 silently stops its scheduler."""
    assert Version(version(package)) < Version(below)


def test_every_installed_pin_is_the_one_in_constraints():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    core = ("torch", "prefect", "mlflow", "sqlalchemy", "fastapi", "transformers", "peft", "boto3", "pydantic")
    assert {name: version(name).split("+")[0] for name in core} == {name: pins[name] for name in core}


def test_a_registered_model_requires_the_driver_of_a_catalog_on_postgresql():
    driver = create_engine("postgresql+psycopg://server/catalog").dialect.dbapi
    assert {driver.__name__, f"{driver.__name__}-{driver.pq.__impl__}"} <= {*REQUIREMENTS}
