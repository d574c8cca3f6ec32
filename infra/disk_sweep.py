"""Search files of the home folder for markers, as bytes, in a child process.

A child, because a process that opens and closes an SQLite file beside its own connections loses their POSIX locks
(sqlite.org/howtocorrupt.html, section 2.2): the next process to leave deletes the log under them, and they fail with
"disk I/O error". That happened here."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 22


@dataclass(frozen=True)
class FileHit:
    """A marker (by its place in the list) that a file holds."""

    path: Path
    marker: int


def sweep_files(roots: Iterable[Path], markers: Sequence[bytes]) -> list[FileHit]:
    """Files that hold a marker; a folder stands for every file below it.

    What a program compressed is not found: for objects ask `registry.artifacts.sweep_bytes` as well."""
    order = {"roots": [str(root) for root in roots], "markers": [marker.hex() for marker in markers]}
    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__],
        input=json.dumps(order),  # not as arguments: every user of the machine may read those
        capture_output=True,
        text=True,
        check=True,
    )
    return [FileHit(Path(path), index) for path, index in json.loads(done.stdout)]


def _search(order: dict[str, list[str]]) -> list[tuple[str, int]]:
    markers = [bytes.fromhex(marker) for marker in order["markers"]]
    files = [path for root in map(Path, order["roots"]) for path in _below(root)]
    return [(str(path), index) for path in files for index in sorted(_markers_in(path, markers))]


def _below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]


def _markers_in(path: Path, markers: Sequence[bytes]) -> set[int]:
    found: set[int] = set()
    overlap = max(map(len, markers), default=1) - 1  # a marker may lie across two chunks
    window = b""
    try:
        with path.open("rb") as handle:
            while chunk := handle.read(CHUNK):
                window = window[len(window) - min(overlap, len(window)) :] + chunk
                found |= {index for index, marker in enumerate(markers) if marker in window}
    except FileNotFoundError:
        pass  # a log that its database just removed
    return found


if __name__ == "__main__":
    print(json.dumps(_search(json.load(sys.stdin))))
