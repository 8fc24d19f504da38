"""Child processes of the embedded stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pixelkiln.local import children
from pixelkiln.local.children import Child, Guard
from tests.worker_processes import wait_for

DONE = [sys.executable, "-c", ""]
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_ctrl_c_while_a_child_starts_leaves_no_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)
            os.kill(os.getpid(), signal.SIGINT)

    guard = Guard()
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Child("sleeper", SLEEP, os.environ, tmp_path, guard).start()
    reaper = threading.Thread(target=started[0].wait)
    reaper.start()
    guard.close()
    reaper.join(timeout=10)
    assert started[0].returncode == -signal.SIGTERM


@pytest.mark.parametrize("may_end", [True, False])
def test_a_child_that_ends_well_is_started_again_unless_it_may_end(tmp_path: Path, may_end: bool) -> None:
    guard = Guard()
    child = Child("done", DONE, os.environ, tmp_path, guard, may_end=may_end)
    child.start()
    assert wait_for(child.tend, 10, "it did not end") == 0
    deadline = time.monotonic() + children.BACKOFF_S[0] + 0.2
    while time.monotonic() < deadline and child.pid is None:
        child.tend()
        time.sleep(0.02)
    assert (child.pid is None) is may_end
    assert child.crashes == (0 if may_end else 1)
    child.ask_to_stop()
    assert child.wait(time.monotonic() + 10, threading.Event())
    guard.close()
