"""Killing workers by a schedule drawn from a seed, and starting again what died, as a supervisor would.

Everything kept here has a session of its own; only processes of these sessions are ever killed, by their ids.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.crash_counts import Line, Strike, Trace, running
from bench.peers.stamps import WARM

RESTART_S = 0.5  # a supervisor's pause
STOP_S = 15.0
_POLL_S = 0.1
_AIM_S = 10.0  # so long is waited for somebody who runs a job
_LOOK_S = 0.01
_FIRST_S = 3.0
_SPREAD = 0.95  # of the run; jobs still come when the last kill strikes


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """A kill to be done, `at_s` seconds after the first job: of who runs a job, or of its `whole` worker.

    `pick` chooses among those that run one: a number in [0, 1).
    """

    at_s: float
    whole: bool
    pick: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A process to keep. Its output is added to `log`."""

    line: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path


def schedule(seed: int, count: int, seconds: float) -> list[Kill]:
    """Return the kills of a run in the order of time, every other one of a whole worker."""
    dice = random.Random(f"pixelkiln-crashes-{seed}")
    times = sorted(dice.uniform(_FIRST_S, max(_FIRST_S, seconds * _SPREAD)) for _ in range(count))
    return [Kill(at_s=round(at, 3), whole=n % 2 == 1, pick=dice.random()) for n, at in enumerate(times)]


class Keeper:
    """Keeps processes running until it is closed."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self._commands = commands
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * len(commands)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._tending = threading.Thread(target=self._tend, name="keeper", daemon=True)

    def start(self) -> None:
        """Start all, and start again what dies."""
        for place in range(len(self._commands)):
            self._start(place)
        self._tending.start()

    def workers(self) -> dict[int, int]:
        """Return every process that runs now, with the one of ours whose session it is in."""
        with self._lock:
            ours = {one.pid for one in self._processes if one is not None and one.poll() is None}
        return {pid: session for pid, session in _sessions().items() if session in ours}

    def close(self) -> None:
        """End all: asked first, then killed."""
        self._stopping.set()
        self._tending.join()
        alive = [one for one in self._processes if one is not None]
        for process in alive:
            process.terminate()
        until = time.monotonic() + STOP_S
        for process in alive:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            _end_session(process.pid)
            process.wait()
        self._processes = []

    def _tend(self) -> None:
        while not self._stopping.wait(_POLL_S):
            for place, process in enumerate(self._processes):
                if process is not None and process.poll() is not None:
                    _end_session(process.pid)  # as whoever starts containers does
                    if self._stopping.wait(RESTART_S):
                        return
                    self._start(place)

    def _start(self, place: int) -> None:
        command = self._commands[place]
        with command.log.open("ab") as log, self._lock:
            self._processes[place] = subprocess.Popen(
                command.line,
                env=dict(command.environment),
                cwd=command.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def strike_all(kills: Sequence[Kill], keeper: Keeper, trace: Trace, *, whole: bool) -> list[Strike]:
    """Do every kill at its time; one that finds nobody at work is left out.

    Args:
        whole: whether these workers have more than the process that runs the job, to be killed with it.
    """
    began, done = time.monotonic(), []
    for one in kills:
        time.sleep(max(0.0, began + one.at_s - time.monotonic()))
        pid = _aim(one, keeper, trace)
        if pid is not None:
            done.append(_strike(pid, keeper, trace, whole=whole and one.whole))
    return done


def kill(pid: int) -> None:
    """SIGKILL; who is gone already is no error."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _aim(one: Kill, keeper: Keeper, trace: Trace) -> int | None:
    """Return a process of ours that runs a job right now."""
    until = time.monotonic() + _AIM_S
    while time.monotonic() < until:
        alive = keeper.workers()
        at_work = [pid for pid in sorted(_at_work(trace.lines())) if pid in alive]
        if at_work:
            return at_work[int(one.pick * len(at_work))]
        time.sleep(_LOOK_S)
    return None


def _strike(pid: int, keeper: Keeper, trace: Trace, *, whole: bool) -> Strike:
    alive = keeper.workers()
    at = time.time()
    if whole:
        kill(alive[pid])  # first: it shall not see its children die
        _end_session(alive[pid])
    else:
        kill(pid)
    while _runs(pid):
        time.sleep(_LOOK_S)
    jobs = _at_work(trace.lines()).get(pid, ())
    return Strike(at=at, pid=pid, whole=whole, jobs=jobs)


def _at_work(lines: Sequence[Line]) -> dict[int, tuple[int, ...]]:
    counted = running(line for line in lines if line.job < WARM)
    return {pid: jobs for pid, jobs in counted.items() if jobs}


def _sessions() -> dict[int, int]:
    """Return every process of this machine that is not dead, with its session (Linux)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            state, session = _state(int(entry.name))
            if state not in ("", "Z", "X"):
                found[int(entry.name)] = session
    return found


def _end_session(session: int) -> None:
    """Kill what a process that has ended, or will not, has left."""
    for pid, of in _sessions().items():
        if of == session:
            kill(pid)


def _runs(pid: int) -> bool:
    return _state(pid)[0] not in ("", "Z", "X")


def _state(pid: int) -> tuple[str, int]:
    """Return a process's state and session, "" and 0 when it is gone (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[3])
