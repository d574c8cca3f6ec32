"""Large blocks that are freed leave the process; what that gives a run: `python -m benchmarks.history`."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
from infra.allocator import LARGE, return_large_blocks
assert not {told} or return_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = libc.memset.argtypes = [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

first = libc.malloc(7 * LARGE)  # when it is freed, glibc raises its threshold to this size
libc.free(first)
before = resident()
blocks = []
for _ in range(8):
    block = libc.malloc(2 * LARGE)
    ctypes.memset(block, 1, 2 * LARGE)
    blocks.append((block, libc.malloc(100_000)))  # what lives longer, between them
for block, _ in blocks:
    libc.free(block)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other rules")
@pytest.mark.parametrize("told", [True, False])
def test_large_blocks_leave_the_process_when_they_are_freed(told):
    script = SCRIPT.format(told=told)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={})
    kept = int(done.stdout)
    assert kept < 1 << 20 if told else kept > 32 << 20
