"""What `deciduous doctor` looks at: is everything there, does it fit this code, what would break and what to do."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from infra import keys, seaweed, signing, storage
from infra.doctor import buckets, catalog, servers
from infra.doctor.findings import Finding, bad, good, poor
from infra.errors import NOT_YOURS, GrantsError, InfraError
from infra.grants import read_grants
from infra.settings import settings

FREE_GIB = 2
PINS = {
    "fastapi": ("<0.151", "Prefect's server does not start"),
    "sqlalchemy": ("<2.1", "Prefect's scheduler silently creates no run"),
}


def examine() -> list[Finding]:
    """Every finding, in the order in which things depend on each other. Migrates nothing and starts no server but an
    embedded S3 that exists; leaves nothing behind."""
    parts: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("packages", _packages),
        ("home", _home),
        ("keys", _keys),
        ("grants", _grants),
        ("catalog", catalog.examine),
        ("s3", buckets.examine),
        ("mlflow", servers.examine_mlflow),
        ("prefect", servers.examine_prefect),
    ]
    return [finding for part, look in parts for finding in _guarded(part, look)]


def _guarded(part: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """One part that fails does not keep the others from being looked at."""
    try:
        yield from look()
    except PermissionError as error:
        yield bad(part, f"{error.filename} cannot be read: {error.strerror}", NOT_YOURS)
    except (InfraError, OSError) as error:
        yield bad(part, str(error))


def _packages() -> Iterator[Finding]:
    for package, (pin, consequence) in PINS.items():
        found = version(package)
        if Version(found) not in SpecifierSet(pin):
            yield bad("packages", f"{package} {found}: {consequence}", f"pip install '{package}{pin}'")
    named = ("torch", "prefect", "mlflow", "sqlalchemy", "boto3")
    yield good("packages", ", ".join(f"{name} {version(name)}" for name in named))


def _home() -> Iterator[Finding]:
    home = settings().home
    if not home.exists():
        yield good("home", f"{home} will be made on first use")
        return
    if not os.access(home, os.W_OK):
        yield bad("home", f"{home} cannot be written", "give its rights to the user who runs deciduous")
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o066:  # passing through is what a PostgreSQL of the home needs
        yield poor("home", f"{home} can be read by other users (mode {mode:o})", f"chmod 700 {home}")
    yield _space(home)


def _space(home: Path) -> Finding:
    """Counted from where something stops: what the embedded S3 leaves free is of no use."""
    free = shutil.disk_usage(home).free
    told, remedy = f"{home}, {free / 2**30:.1f} GiB free", "free some space on its disk"
    least = seaweed.least_free(home) if storage.is_own() else 0
    if least:
        told += f"; below {least / 2**30:.1f} GiB the embedded S3 takes no writes"
    if free < least:
        return bad("home", told, remedy)
    return poor("home", told, remedy) if free < least + FREE_GIB * 2**30 else good("home", told)


def _keys() -> Iterator[Finding]:
    given = {"hash key": settings().hash_key is not None, "signing key": settings().signing_key is not None}
    made = {"hash key": "hash.key", "signing key": "signing.pem"}
    for name, is_given in given.items():
        here = settings().home / "keys" / made[name]
        if is_given or here.exists():
            _ = signing.signing_key() if name == "signing key" else keys.hash_key()
            yield good("keys", f"{name} from {'the settings' if is_given else here}; keep a copy with the backups")
        else:
            yield good("keys", f"{name} will be drawn on first use")


def _grants() -> Iterator[Finding]:
    file = settings().entitlements
    if file is not None:
        try:
            granted = [callers or {} for callers in read_grants(file).grants.values()]
        except GrantsError as error:
            yield bad("grants", str(error), "correct it, or DECIDUOUS_ENTITLEMENTS: nobody is answered")
        else:
            yield good("grants", f"{file}: {sum(map(len, granted))} callers of {len(granted)} streams")
    elif settings().require_entitlements:
        yield good("grants", "no file: nobody is answered before DECIDUOUS_ENTITLEMENTS names one")
    elif settings().database_url.startswith("sqlite"):
        yield good("grants", "no file: whoever asks says which groups they hold")
    else:
        remedy = "only behind a gateway that checks; else DECIDUOUS_ENTITLEMENTS"
        yield poor("grants", "no file: whoever asks says which groups they hold", remedy)
