"""Ends the children of a stack whose parent died without a chance to do so itself (SIGKILL, a crash).

Run as `python -m pixelkiln.local.guard`; reads `+PID` and `-PID` lines. When its stdin ends, whoever is still
listed gets SIGTERM, newest first, and after a while SIGKILL. Portable where a parent-death signal is not.
"""

from __future__ import annotations

import os
import signal
import sys
import time

GRACE_S = 15.0


def main() -> None:
    """Listen until the parent is gone, then clean up."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    pids: list[int] = []
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            pids.append(pid)
        elif pid in pids:
            pids.remove(pid)
    for pid in reversed(pids):
        end(pid)


def end(pid: int) -> None:
    """Stop a process group that was asked to lead itself; returns when it is gone."""
    signal_group(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        if not signal_group(pid, 0):
            return
        time.sleep(0.1)
    signal_group(pid, signal.SIGKILL)


def signal_group(pid: int, number: int) -> bool:
    """Send a signal to a process group; False when it is gone."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
