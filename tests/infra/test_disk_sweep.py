"""Files are searched as bytes, and the search leaves open databases their locks."""

import sqlite3
import subprocess
import sys

import pytest

from infra import disk_sweep
from infra.disk_sweep import FileHit, sweep_files


def test_hits_name_file_and_marker(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"..one..two..")
    (tmp_path / "b").write_bytes(b"nothing")
    found = sweep_files([tmp_path, tmp_path / "absent"], [b"three", b"two", b"one"])
    assert found == [FileHit(tmp_path / "deep" / "a", 1), FileHit(tmp_path / "deep" / "a", 2)]


@pytest.mark.parametrize("offset", [0, disk_sweep.CHUNK - 1, disk_sweep.CHUNK])
def test_marker_across_two_chunks_is_found(tmp_path, offset):
    (tmp_path / "a").write_bytes(b"." * offset + b"secret")
    assert len(sweep_files([tmp_path / "a"], [b"secret", b"a longer absent marker"])) == 1


def test_open_database_survives_the_search_and_another_process(tmp_path):
    path = tmp_path / "a.db"
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table t (x)")
    sweep_files([tmp_path], [b"x"])
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sqlite3,sys; sqlite3.connect(sys.argv[1]).execute('select * from t')",
            str(path),
        ],
        check=True,
    )
    assert path.with_name("a.db-wal").exists()  # the other process was not the last one, and it knew
    connection.execute("insert into t values (1)")
    connection.close()
