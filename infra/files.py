"""Files of the home folder that only their owner may read."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import FolderError, UnwritableError
from infra.settings import settings


def make_folder(path: Path, mode: int = 0o700) -> Path:
    """Closed to others, and so is the home on the way to it: `mkdir` gives its mode to the last folder alone.

    Raises FolderError where a file is in the way, or the place takes none."""
    home = settings().home
    try:
        for folder in (home, path) if path.is_relative_to(home) else (path,):
            folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise FolderError(str(path), error.strerror or str(error)) from error
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replace the file at once, mode 600: a reader sees the old content or the new, never a part."""
    temporary = _write_beside(path, content)
    os.replace(temporary, path)


def remove_private(path: Path) -> None:
    path.unlink(missing_ok=True)
    remove_partial(path)


def remove_partial(path: Path) -> None:
    """Remove what a process that was killed while it wrote the file left beside it. Nobody else may be writing it."""
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink(missing_ok=True)


def create_private(path: Path, make: Callable[[], bytes]) -> bytes:
    """Content of the file, made on first use; when two processes race, both get the winner's."""
    if not path.exists():
        temporary = _write_beside(path, make())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
    return path.read_bytes()


def is_of_another(recorded: str | None, folder: Path) -> bool:
    """Whether a note that this folder holds was written in another one, which is still there: the folder was copied.
    One that was moved since, or has two paths, is the same."""
    other = Path(recorded or folder)
    return other.exists() and not other.samefile(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes and threads; it falls when its holder dies."""
    make_folder(path.parent)
    try:
        handle = path.open("w")
    except OSError as error:
        raise UnwritableError(path.name, str(path.parent), error.strerror or str(error)) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write_beside(path: Path, content: bytes) -> Path:
    """Raises UnwritableError where the disk is full or refuses; nothing is left beside the file then."""
    make_folder(path.parent)
    name = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp: mode 600
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        if name is not None:
            os.unlink(name)
        raise UnwritableError(path.name, str(path.parent), error.strerror or str(error)) from error
    return Path(name)
