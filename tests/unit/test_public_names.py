"""The curated door: few names, all of them there, cheap to open."""

from __future__ import annotations

import subprocess
import sys

import pixelkiln


def test_the_door_has_at_most_twenty_names() -> None:
    assert len(pixelkiln.__all__) <= 20
    assert pixelkiln.__all__ == sorted(pixelkiln.__all__)


def test_every_name_at_the_door_is_there() -> None:
    for name in pixelkiln.__all__:
        assert getattr(pixelkiln, name).__doc__


def test_opening_the_door_imports_nothing() -> None:
    script = "import sys, pixelkiln; print([name for name in sys.modules if name.startswith('pixelkiln')])"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "['pixelkiln']\n"
