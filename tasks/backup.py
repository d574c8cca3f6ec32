"""Write down what only the databases know: tables as lines of JSON, and which version of each object was current.

A backup holds keyed hashes and numbers and no record, for objects stay in their versioned bucket: one that is kept for
years keeps nobody's data."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from hashlib import file_digest
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from infra import database, storage, tracking
from infra.errors import InfraError, UnwritableError
from infra.files import make_folder
from registry import artifacts, dump
from registry.errors import StateError
from registry.tables import now

FORMAT = "deciduous-backup/1"
CATALOG, MLFLOW, OBJECTS, INDEX = "catalog.jsonl", "mlflow.jsonl", "objects.jsonl", "backup.json"
Index = dict[str, Any]


def back_up(folder: Path) -> Index:
    """Write a backup into a new folder; it appears whole or not at all. The catalog comes first: what is written to
    S3 or MLflow meanwhile is more than it names, never less. Raises UnwritableError where the disk is full or refuses.
    """
    if folder.exists():
        raise StateError(f"{folder} exists; name a new folder for the backup")
    make_folder(folder.parent)
    try:
        return _written(folder)
    except InfraError:  # some are an OSError too
        raise
    except OSError as error:
        raise UnwritableError("the backup", str(folder), error.strerror or str(error)) from error


def _written(folder: Path) -> Index:
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        lines = {
            CATALOG: _dump(scratch / CATALOG, database.engine()),
            MLFLOW: _dump(scratch / MLFLOW, tracking.backend_engine()),
            OBJECTS: _write(scratch / OBJECTS, _objects()),
        }
        index = {
            "format": FORMAT,
            "made_at": now().isoformat(),
            "revision": database.revisions()[0],
            "buckets": storage.buckets(),
            "files": {name: {"lines": n, "sha256": _digest(scratch / name)} for name, n in lines.items()},
        }
        _write(scratch / INDEX, [json.dumps(index, indent=1)])
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return index


def read_index(folder: Path) -> Index:
    """What a backup says of itself. Raises StateError for a folder that is none, or whose files were changed."""
    try:
        index: Index = json.loads((folder / INDEX).read_bytes())
        form, files = index["format"], index["files"]
        damaged = [name for name in (CATALOG, MLFLOW, OBJECTS) if _digest(folder / name) != files[name]["sha256"]]
    except OSError as error:
        raise StateError(
            f"{folder} is no backup, or not a whole one: {error.filename}: {error.strerror}; name a folder that "
            "`deciduous backup` wrote"
        ) from None
    except (ValueError, LookupError, TypeError) as error:
        raise StateError(f"{folder} is no backup: {error!r}; name a folder that `deciduous backup` wrote") from None
    if form != FORMAT or damaged:
        raise StateError(f"the backup {folder} is damaged ({', '.join(damaged) or form}); take another")
    return index


def read_lines(folder: Path, name: str) -> Iterable[str]:
    with (folder / name).open(encoding="utf-8") as handle:
        yield from handle


def _dump(path: Path, engine: Engine) -> int:
    # one snapshot of all tables, also while others write: SQLite's transactions are that anyway
    options = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        return _write(path, dump.dump_rows(connection))


def _objects() -> Iterable[str]:
    for bucket in storage.buckets():
        for version in artifacts.list_current(storage.s3(), bucket):
            yield json.dumps([bucket, version.key, version.version_id])


def _write(path: Path, lines: Iterable[str]) -> int:
    count = 0
    with path.open("x", encoding="utf-8") as handle:
        for line in lines:
            handle.write(f"{line}\n")
            count += 1
    path.chmod(0o600)
    return count


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return file_digest(handle, "sha256").hexdigest()
