"""Child processes: started with a log file, restarted when they crash, stopped gently and then not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pixelkiln.local.guard import signal_group

BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 60.0  # a child that ran this long has not crashed "again"
LOG_BYTES = 10_000_000


@contextmanager
def ctrl_c_put_off() -> Iterator[None]:
    """Let no KeyboardInterrupt come between a process's start and its entry in the guard's list."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


class Guard:
    """The process that ends the children if this one dies first."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pixelkiln.local.guard"], stdin=subprocess.PIPE, start_new_session=True
        )

    def tell(self, sign: str, pid: int) -> None:
        """Add (`+`) or remove (`-`) a process."""
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(f"{sign}{pid}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:  # killed by somebody; the children are still ours to stop
            return

    def close(self) -> None:
        """Let it go, with nothing left to guard."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        self._process.wait()


class Child:
    """One child process that should always run, or until it says that it is done.

    Args:
        name: for messages and the log file.
        command: what to run; its process leads a group of its own, so that a terminal's Ctrl-C reaches only
            us, and we decide the order of stopping.
        folder: where its log goes.
        may_end: whether the exit status 0 means that it is done; else it is started again after that, too.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        guard: Guard,
        *,
        may_end: bool = False,
    ) -> None:
        self.name = name
        self.may_end = may_end
        self.log = folder / f"{name}.log"
        self.crashes = 0
        self._command = list(command)
        self._environment = dict(environment)
        self._guard = guard
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._restart_at: float | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start it.

        Raises:
            OSError: the program cannot be run.
        """
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            os.replace(self.log, self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log, ctrl_c_put_off():
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
            self._guard.tell("+", self._process.pid)
        self._started = time.monotonic()
        self._restart_at = None

    def tend(self) -> int | None:
        """Restart it when it has died, after a growing pause, unless it is done.

        Returns its exit status when it just died.
        """
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return None
            signal_group(
                self._process.pid, signal.SIGTERM
            )  # what it left behind must not run beside the next
            self._forget()
            if status == 0 and self.may_end:
                return status
            if time.monotonic() - self._started > STEADY_S:
                self.crashes = 0
            pause_s = BACKOFF_S[min(self.crashes, len(BACKOFF_S) - 1)]
            self.crashes += 1
            self._restart_at = time.monotonic() + pause_s
            return status
        if self._restart_at is not None and time.monotonic() >= self._restart_at:
            self.start()
        return None

    def ask_to_stop(self) -> None:
        """Send SIGTERM; it is not restarted any more."""
        self._restart_at = None
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGTERM)

    def alive(self) -> bool:
        """Tell whether it runs right now."""
        return self._process is not None and self._process.poll() is None

    def wait(self, deadline: float, hurry: threading.Event) -> bool:
        """Wait for its end, then kill it; returns False when it had to be killed.

        Args:
            deadline: a moment of the monotonic clock.
            hurry: ends the patience at once.
        """
        if self._process is None:
            return True
        while self.alive() and time.monotonic() < deadline and not hurry.is_set():
            time.sleep(0.02)
        gentle = not self.alive()
        signal_group(self._process.pid, signal.SIGKILL)  # and whatever it left behind in its group
        self._process.wait()
        self._forget()
        return gentle

    def last_lines(self, count: int = 5) -> str:
        """Return the end of its log, for a message about why it does not run."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 8_192))
                return "\n".join(log.read().decode("utf-8", "replace").strip().splitlines()[-count:])
        except OSError:
            return ""

    def _forget(self) -> None:
        if self._process is not None:
            self._guard.tell("-", self._process.pid)
            self._process = None
