"""The home folder as a whole."""

import shutil
from pathlib import Path

from infra import seaweed, stack
from infra.errors import StartError
from infra.files import make_folder, write_private
from infra.settings import settings

MARKER = ".deciduous-demo"
UNMARKED = ("summary.json", "catalog.db", "keys/hash.key")
"""What every finished demo left in its home before there was a marker."""


def begin_anew(home: Path) -> None:
    """Stop what runs on a home of the demo, empty it, and mark it as one. Raises StartError for a folder with anything
    in it that no demo made: its name alone says nothing, and another home may hold somebody's model."""
    home = home.expanduser().resolve()
    if home.exists() and not _is_of_a_demo(home):
        raise StartError(
            f"{home} is no home of an earlier demo, and the demo empties the home that it is given; name a folder that "
            "is empty or not there yet"
        )
    make_folder(home.parent, 0o711)  # the home, by default, of who goes on with their own data
    make_folder(home)
    write_private(home / MARKER, b"")  # first, and left until the end: a killed demo can be begun anew
    stack.down()
    seaweed.stop_now(home)
    for entry in home.iterdir():
        if entry.name != MARKER:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    settings.cache_clear()  # they may name servers that ended just now


def _is_of_a_demo(home: Path) -> bool:
    if not home.is_dir():
        return False
    return not any(home.iterdir()) or (home / MARKER).is_file() or all((home / name).is_file() for name in UNMARKED)
