"""What was allocated and freed is the system's again."""

from __future__ import annotations

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


def test_freed_memory_goes_back_to_the_system() -> None:
    if heap._TRIM is None:
        pytest.skip("this C library has no malloc_trim")
    given_back = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True, timeout=60)
    assert int(given_back) > 40 * MIB


def test_where_the_c_library_cannot_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert heap._malloc_trim() is None
