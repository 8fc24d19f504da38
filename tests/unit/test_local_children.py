"""Child processes of the embedded stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pixelkiln.local import children
from pixelkiln.local.children import Child, Guard

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
    monkeypatch.setattr(children.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Child("sleeper", SLEEP, os.environ, tmp_path, guard).start()
    reaper = threading.Thread(target=started[0].wait)
    reaper.start()
    guard.close()
    reaper.join(timeout=10)
    assert started[0].returncode == -signal.SIGTERM
