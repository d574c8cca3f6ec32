"""What the caches on the local disk share: whole files or none, and a limit that the oldest make room for."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from threading import get_ident

from registry.errors import StorageRefusedError, StorageUnavailableError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that other processes see whole or not at all. Raises StorageUnavailableError where the disk is full
    or refuses, StorageRefusedError where a folder lies there; nothing of the file is left then."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StorageRefusedError(
            f"cannot write {path}: a file or folder of another kind is in its way; name another place"
        ) from error
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StorageUnavailableError(
            f"cannot write {path}: {error.strerror}; free some space there, then run again"
        ) from error


def trim(paths: Iterable[Path], limit: int) -> int:
    """Delete the least recently used files until the rest fits the limit in bytes; returns how many went."""
    files = sorted(_files(paths), key=lambda each: each[0].st_mtime)
    excess, gone = sum(stat.st_size for stat, _ in files) - limit, 0
    for stat, path in files:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= stat.st_size
        gone += 1
    return gone


def _files(paths: Iterable[Path]) -> Iterator[tuple[os.stat_result, Path]]:
    for path in paths:
        with suppress(FileNotFoundError):  # another process made room
            stat = path.stat()
            if S_ISREG(stat.st_mode):
                yield stat, path
