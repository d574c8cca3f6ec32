"""Caches share their folder with other processes, which make room too."""

from pathlib import Path

import pytest

from registry.errors import StorageRefusedError
from tasks import disk_cache


class Vanishing(type(Path())):
    """A file that another process removes as soon as somebody has looked at it."""

    def stat(self, **how):
        found = super().stat(**how)
        self.unlink()
        return found


def test_files_that_others_remove_meanwhile_do_not_end_the_trimming(tmp_path):
    kept, vanishing, gone = tmp_path / "kept", Vanishing(tmp_path / "vanishing"), tmp_path / "gone"
    kept.write_bytes(b"1")
    vanishing.write_bytes(b"1")
    assert disk_cache.trim([gone, vanishing, tmp_path, kept], limit=2) == 0
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("place", ["file/below", "folder"])
def test_what_no_space_would_help_is_refused_at_once(tmp_path, place):
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageRefusedError, match=f"{place}: a file or folder of another kind is in its way"):
        disk_cache.write_whole(tmp_path / place, b"2")
    assert {each.name for each in tmp_path.iterdir()} == {"file", "folder"}
