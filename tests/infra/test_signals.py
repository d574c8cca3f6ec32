"""What a command does that is told to end, alone or with everything that it started."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

COMMAND = """
import atexit, signal, subprocess, sys, time
from flows import cli
from infra import signals

signal.signal(signal.SIGINT, signal.default_int_handler)  # whom a script starts beside itself, ignores it

def wait():
    child = subprocess.Popen(["sleep", "600"])
    atexit.register(lambda: (child.kill(), child.wait()))
    if sys.argv[1] == "deaf":  # as Prefect is, which waits for an API that has ended
        signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        print(child.pid, flush=True)
        time.sleep(600)
    except BaseException:
        if sys.argv[1] == "deaf":
            time.sleep(600)
        raise

cli.app, signals.GRACE_SECONDS = wait, 0.1
cli.main()
"""


@pytest.mark.parametrize("kind", ["deaf", "hearing"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_end_ends_and_leaves_no_process(tmp_path, kind, number):
    environment = {**os.environ, "DECIDUOUS_HOME": str(tmp_path)}
    command = [sys.executable, "-c", COMMAND, kind]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            child = psutil.Process(int(process.stdout.readline()))
            process.send_signal(number)
            code = process.wait(60)
        finally:
            process.kill()
    # nobody catches what Ctrl-C raises here: Python ends itself by the same signal
    assert code == (-number if (kind, number) == ("hearing", signal.SIGINT) else 128 + number)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


TOLD_AGAIN = """
import os, signal, time
from infra import signals

signals.GRACE_SECONDS, signals._end_what_we_started = 0.2, lambda: None
with signals.ending_soon():
    signal.signal(signal.SIGTERM, lambda *_: None)
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
"""


def test_a_command_that_is_told_twice_to_end_says_nothing_of_it():
    ended = subprocess.run([sys.executable, "-c", TOLD_AGAIN], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "")
