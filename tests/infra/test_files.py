"""Private files and locks between processes; children known by pid and birth."""

import resource
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace

import psutil
import pytest

from infra import children
from infra.errors import FolderError, UnwritableError
from infra.files import create_private, locked, make_folder, write_private


def test_the_first_writer_wins_and_the_file_is_private(tmp_path):
    path = tmp_path / "deep" / "secret"
    assert create_private(path, lambda: b"one") == b"one"
    assert create_private(path, lambda: b"two") == b"one"
    write_private(path, b"three")
    assert path.read_bytes() == b"three"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in path.parent.iterdir()] == ["secret"]


def test_a_home_is_closed_to_others_whatever_of_it_is_made_first(tmp_path, set_variable):
    set_variable("HOME", tmp_path / "new" / "home")
    made = make_folder(tmp_path / "new" / "home" / "s3" / "data")
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (made, made.parents[1])] == [0o700, 0o700]
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) & 0o001  # root's PostgreSQL passes it


def test_a_full_disk_is_one_error_and_leaves_nothing_beside(tmp_path):
    path, before = tmp_path / "keys" / "secret", resource.getrlimit(resource.RLIMIT_FSIZE)
    make_folder(path.parent)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))  # stands for a full disk
    try:
        with pytest.raises(UnwritableError, match=r"secret in .*/keys cannot be written: .*; free some space"):
            write_private(path, b"x" * 2048)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(path.parent.iterdir()) == []
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(UnwritableError, match=r"secret in .*/keys cannot be written"), locked(path):
        pass


def test_racing_creators_agree(tmp_path):
    barrier = threading.Barrier(8)
    found = []

    def create(name):
        barrier.wait()
        found.append(create_private(tmp_path / "key", lambda: name))

    threads = [threading.Thread(target=create, args=(b"%d" % number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8


def test_lock_keeps_other_processes_out(tmp_path):
    script = "import fcntl,sys; fcntl.flock(open(sys.argv[1],'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    attempt = [sys.executable, "-c", script, str(tmp_path / "lock")]
    with locked(tmp_path / "lock"):
        assert subprocess.run(attempt, check=False, capture_output=True).returncode == 1
    assert subprocess.run(attempt, check=False, capture_output=True).returncode == 0


def test_child_lives_until_ended_and_a_reused_pid_is_not_it(tmp_path):
    child = children.spawn([sys.executable, "-c", "print('up', flush=True); input()"], tmp_path / "log", {})
    sleeper = children.spawn(["sleep", "600"], tmp_path / "log2", {})
    later = replace(sleeper, born=sleeper.born - 60)
    assert sleeper.is_alive()
    assert not later.is_alive()
    assert not children.end(later)
    assert sleeper.is_alive()
    assert children.end(sleeper)
    assert not sleeper.is_alive()
    children.end(child)


def test_a_child_is_known_after_the_clock_was_set_and_by_what_an_older_version_noted(tmp_path, monkeypatch):
    sleeper = children.spawn(["sleep", "600"], tmp_path / "log", {})
    older = replace(sleeper, born=psutil.Process(sleeper.pid).create_time())
    assert older.is_alive()
    # on Linux a process's time of birth is the start of the machine, by the clock of now, and what passed until then
    start = psutil.boot_time()
    for module in (psutil, psutil._psplatform):
        monkeypatch.setattr(module, "boot_time", lambda: start - 3600)
    assert sleeper.is_alive()
    assert children.end(sleeper)


def test_end_takes_the_whole_family():
    script = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        family = [children.known(parent.pid), children.known(int(parent.stdout.readline()))]
        assert all(child.is_alive() for child in family)
        children.end(family[0], grace=5)
        assert not any(child.is_alive() for child in family)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_where_a_file_lies_names_the_remedy(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FolderError, match=f"{place} cannot be made: .*--home"):
        make_folder(tmp_path / place)
