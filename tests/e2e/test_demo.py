"""`make demo`, without the making of the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

COMMAND = [sys.executable, "-u", "-m", "pixelkiln.demo", "--out"]


@pytest.mark.slow
def test_the_demo_ends_with_a_contact_sheet(tmp_path: Path) -> None:
    astray = {
        **os.environ,
        "PIXELKILN_REDIS_URL": "redis://127.0.0.1:9/0",
        "PIXELKILN_URL": "http://127.0.0.1:9",
    }
    told = subprocess.run([*COMMAND, str(tmp_path)], capture_output=True, text=True, env=astray, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines()[-1] == f"contact sheet: {tmp_path / 'contact-sheet.png'}"
    assert told.stdout.count("succeeded") == 27
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert sheet.width > 1_000
        assert len(sheet.getcolors(2**24) or []) > 10_000


def test_an_interrupted_demo_stops_everything(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [*COMMAND, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while len(psutil.Process(demo.pid).children()) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)  # until guard, Redis, API and worker are there
    children = psutil.Process(demo.pid).children(recursive=True)
    demo.send_signal(signal.SIGINT)
    told = demo.communicate(timeout=60)
    assert demo.returncode in {130, -signal.SIGINT}, (
        told
    )  # CPython ends by the signal if it came in an `exec`
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert list(Path(tmp_path).iterdir()) == []
