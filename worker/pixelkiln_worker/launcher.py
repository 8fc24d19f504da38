"""`python -m pixelkiln_worker`: one Celery child a device, restarted when it dies, drained at SIGTERM."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from pixelkiln_shared import logs
from pixelkiln_shared.errors import Misconfigured, RedisUnavailable
from pixelkiln_shared.settings import Settings, load
from pixelkiln_worker.burials import Burials
from pixelkiln_worker.device import accelerator_here
from pixelkiln_worker.serving import (
    BIRTH,
    EXIT_DRAINED,
    EXIT_MISCONFIGURED,
    EXIT_POISONED,
    EXIT_UNAVAILABLE,
    served,
    worker_id,
)
from pixelkiln_worker.signs_of_life import SignsOfLife

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
UNAVAILABLE_PAUSE_S = 3.0  # Redis or the store may answer any moment
STEADY_S = 30.0  # a child that lived so long has earned a quick restart
KILL_AFTER_S = 10.0  # beyond `drain_s`: a child that is still there hangs
_POLL_S = 0.1
_PR_SET_PDEATHSIG = 1


def devices(settings: Settings) -> list[dict[str, str]]:
    """Return, for each child to start, the environment that shows it its one device."""
    if settings.device == "auto" and sys.platform == "linux" and accelerator_here():
        cards = _visible_cards()
        if cards:
            return [{"CUDA_VISIBLE_DEVICES": card, "PIXELKILN_DEVICE": "cuda:0"} for card in cards]
    return [{}]


def _visible_cards() -> list[str]:
    """Ask torch, in a process of its own: it stays out of this one, and a broken driver cannot harm us."""
    program = "import torch; print(torch.cuda.device_count())"
    try:
        count = int(subprocess.check_output([sys.executable, "-c", program], timeout=120, text=True))
    except (subprocess.SubprocessError, ValueError):
        return []
    named = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    return named[:count] or [str(index) for index in range(count)]


def command(settings: Settings, index: int) -> list[str]:
    """Return the command line of child `index`."""
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", "pixelkiln_worker.app", "worker"),
        *("--pool", "threads", "--concurrency", str(settings.worker_concurrency)),
        *("--queues", ",".join(served(settings))),
        *("--hostname", f"pixelkiln-{os.getpid()}-{index}@%h"),
        *("--task-events", "--without-gossip", "--without-mingle", "--loglevel", settings.log_level.upper()),
    ]


@dataclass(slots=True)
class Child:
    """One Celery process and how its restarts go. Times are monotonic seconds."""

    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    next_start_at: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    birth: str = ""  # names the process together with its id
    last_pid: int = 0
    last_code: int | None = None
    signs: SignsOfLife | None = None
    killed_for: str = ""  # why the launcher killed the last process, if it did
    drained: bool = False  # the last process ended because somebody asked it to: there is no next one

    def due(self) -> bool:
        """Whether the next process should be started now."""
        return self.process is None and not self.drained and time.monotonic() >= self.next_start_at

    def start(self) -> None:
        """Start the process, in a group of its own: Ctrl-C reaches only the launcher, which then drains."""
        self.started_at = time.monotonic()
        self.birth, self.killed_for = secrets.token_hex(3), ""
        self.signs = SignsOfLife()
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment, **self.signs.environment, BIRTH: self.birth},
            stdin=subprocess.DEVNULL,
            pass_fds=(self.signs.descriptor,),
            process_group=0,
            preexec_fn=_die_with(os.getpid()) if sys.platform == "linux" else None,
        )
        self.signs.handed_over()
        log.info("worker started", pid=self.process.pid, **self.environment)

    def kill_if_silent(self, limit_s: float) -> None:
        """Kill a process that has given no sign of life for so long: it hangs, or is stopped."""
        if self.process is None or self.signs is None or self.killed_for:
            return
        self.signs.look()
        if self.signs.silent_s > limit_s:
            silent_s = round(self.signs.silent_s, 1)
            log.error("a worker gives no sign of life; it is killed", pid=self.process.pid, silent_s=silent_s)
            self.process.kill()
            self.killed_for = "silent"

    def ended(self) -> bool:
        """Whether the process has just ended; notes how, and when to start the next."""
        if self.process is None or self.process.poll() is None:
            return False
        self.last_pid = self.process.pid
        self.last_code = self.process.returncode
        now = time.monotonic()
        self.pause_s = (
            FIRST_PAUSE_S if now - self.started_at > STEADY_S else min(2 * self.pause_s, LONGEST_PAUSE_S)
        )
        if self.last_code == EXIT_UNAVAILABLE:
            self.pause_s = min(self.pause_s, UNAVAILABLE_PAUSE_S)
        elif self.last_code == EXIT_POISONED:  # it had served: the next one will, and jobs wait for it
            self.pause_s = FIRST_PAUSE_S
        self.next_start_at = now + self.pause_s
        self.drained = self.last_code == EXIT_DRAINED
        self.process = None
        if self.signs is not None:
            self.signs.close()
        return True


@dataclass(slots=True)
class Launcher:
    """The supervisor. `run` returns the exit code."""

    settings: Settings
    burials: Burials
    children: list[Child] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int:
        """Keep one child a device alive until SIGTERM or SIGINT.

        Returns 0 after an orderly stop or when every child was drained, 2 when a child says that a setting is
        wrong, 1 when one was killed.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        environments = devices(self.settings)
        self.children = [Child(command(self.settings, i), env) for i, env in enumerate(environments)]
        code = 0
        while not self._stopping.is_set():
            for child in self.children:
                child.kill_if_silent(self.settings.silent_s)
                if child.ended():
                    self._bury(child)
                    if child.last_code == EXIT_MISCONFIGURED:
                        code = EXIT_MISCONFIGURED
                        self._stopping.set()
                if child.due() and not code:
                    child.start()
            if all(child.drained for child in self.children):
                return 0
            self.burials.look()
            self._stopping.wait(_POLL_S)
        return self._stop() or code

    def _bury(self, child: Child) -> None:
        """Take a dead child off the fleet's register, and let others have its jobs at once."""
        name = worker_id(child.last_pid, child.birth)
        try:
            child.drained |= self.burials.bury(name)  # it died while it drained
        except RedisUnavailable:
            log.warning("Redis is away: its jobs wait until it is back", worker=name)
        how: dict[str, int | str | None] = {"pid": child.last_pid, "code": child.last_code}
        if child.killed_for:
            how["why"] = child.killed_for
        if child.drained:
            log.info("worker drained", **how)
        else:
            log.warning("worker ended", **how, restart_s=round(child.pause_s, 1))

    def _stop(self) -> int:
        """Drain every child; kill those that do not end in time."""
        alive = {child.birth: child.process for child in self.children if child.process is not None}
        for process in alive.values():
            process.terminate()
        deadline = time.monotonic() + self.settings.drain_s + KILL_AFTER_S
        killed = 0
        for birth, process in alive.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._give_back(worker_id(process.pid, birth))
                process.kill()
                process.wait()
                killed += 1
        self.burials.look(at_once=True)
        return 1 if killed else 0

    def _give_back(self, name: str) -> None:
        """Let others have the jobs of a child that must be killed: the stop ends it, not they."""
        try:
            self.burials.bury(name, blame=False)
        except RedisUnavailable:
            log.warning("Redis is away: leases will run out instead", worker=name)


def _die_with(parent: int) -> Callable[[], None]:
    """Return what a child does before it becomes Celery: ask Linux for SIGTERM when the launcher dies."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return ask


def main() -> int:
    """Run the launcher; returns the exit code."""
    try:
        settings = load()
        logs.configure(settings)
        return Launcher(settings, Burials(settings)).run()
    except Misconfigured as error:
        print(error.message, file=sys.stderr)
        return EXIT_MISCONFIGURED
