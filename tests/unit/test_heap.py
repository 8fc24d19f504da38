"""What was allocated and freed is the system's again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pixelkiln_shared import heap

MIB = 1 << 20
PROGRAM = """
from pathlib import Path
from pixelkiln_shared import heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096

blocks = [bytearray(100_000) for _ in range(500)]  # below what malloc maps one by one
last = blocks.pop()  # and what lives at the top of a heap keeps all below it
blocks.clear()
before = resident()
heap.trim()
print(before - resident())
"""

THREADS = 6
STATISTICS = f"""
import ctypes
from threading import Barrier, Thread
from pixelkiln_shared import heap

heap.share_arenas()
together = Barrier({THREADS})

def allocate():
    together.wait()
    block = bytearray(10_000)
    together.wait()

threads = [Thread(target=allocate) for _ in range({THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()
"""


def test_freed_memory_goes_back_to_the_system() -> None:
    if heap._TRIM is None:
        pytest.skip("this C library has no malloc_trim")
    given_back = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True, timeout=60)
    assert int(given_back) > 40 * MIB


def test_where_the_c_library_cannot_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert heap._of_glibc("malloc_trim") is None


@pytest.mark.parametrize(("chosen", "arenas"), [(None, heap.ARENAS), (str(THREADS), THREADS)])
def test_threads_share_two_arenas_or_as_many_as_the_operator_says(chosen: str | None, arenas: int) -> None:
    if heap._MALLOPT is None:
        pytest.skip("this C library is not glibc")
    more = {} if chosen is None else {"MALLOC_ARENA_MAX": chosen}
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | more
    ran = subprocess.run(
        [sys.executable, "-c", STATISTICS], env=environment, text=True, stderr=subprocess.PIPE, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("Arena ") == arenas
