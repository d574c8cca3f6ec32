"""One holder at a time between processes, here on SQLite (PostgreSQL: test_production); a lock dies with its holder."""

import os
import subprocess
import sys

import pytest

from infra import database, locks
from infra.errors import HeldError

ROOT = database.MIGRATIONS.parent.parent
HOLD = """
import sys
from infra import locks
with locks.exclusive("stream:mail", 60):
    print("held", flush=True)
    sys.stdin.readline()
"""
COUNT = """
import sys
from pathlib import Path
from infra import locks
counter = Path(sys.argv[1])
for _ in range(10):
    with locks.exclusive("stream:count", 60):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def start(script, *arguments):
    """A process with this one's settings; its first line says that it holds the lock."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def catalog(tmp_path, set_variable):
    set_variable("DATABASE_URL", f"sqlite:///{tmp_path}/catalog.db")


def check_one_holder_at_a_time():
    holder = start(HOLD)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(HeldError, match=f"stream:mail is being worked on by deciduous {holder.pid} on"):
        locks.exclusive("stream:mail").__enter__()
    with locks.exclusive("stream:other"):
        pass
    holder.communicate("\n")
    with locks.exclusive("stream:mail"):
        pass


def check_lock_dies_with_its_holder():
    holder = start(HOLD)
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    with locks.exclusive("stream:mail", 30):
        pass
    holder.communicate()


def check_nothing_is_lost(counter):
    counter.write_text("0")
    counting = [start(COUNT, counter) for _ in range(4)]
    assert [process.wait() for process in counting] == [0, 0, 0, 0]
    assert counter.read_text() == "40"
    for process in counting:
        process.communicate()


def test_one_process_holds_a_lock_and_the_others_are_told_who(catalog):  # noqa: ARG001
    check_one_holder_at_a_time()


def test_lock_dies_with_its_holder(catalog):  # noqa: ARG001
    check_lock_dies_with_its_holder()


def test_processes_that_take_turns_lose_nothing(catalog, tmp_path):  # noqa: ARG001
    check_nothing_is_lost(tmp_path / "counter")


def test_an_error_in_the_block_lets_go(catalog):  # noqa: ARG001
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locks.exclusive("stream:mail"):
            1 / 0  # noqa: B018
