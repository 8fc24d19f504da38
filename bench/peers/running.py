"""Running a peer: a Redis and a folder of its own, its worker as a process, its verbs as commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import environments
from bench.peers.field import Peer
from bench.peers.work import Tally
from bench.stage import free_port, redis_server

DRIVE_LIMIT_S = 180.0
STOP_S = 10.0
_SCRIPTS = Path(__file__).parent


class PeerFailed(Exception):
    """A peer did not do its work; the message ends with what it said last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """Where one peer does one kind of work. `verb` is what it is asked for, and chooses its settings."""

    peer: Peer
    verb: str
    python: Path
    folder: Path
    environment: dict[str, str]
    tally: Tally

    @contextmanager
    def served(self) -> Iterator[None]:
        """Have the peer's worker running inside the block."""
        with (self.folder / "serve.log").open("wb") as log:
            process = subprocess.Popen(
                [str(self.python), self.peer.script, "serve", self.verb],
                cwd=_SCRIPTS,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield
            finally:
                _end(process)

    def drive(self, *arguments: int, limit_s: float = DRIVE_LIMIT_S) -> Any:
        """Run the verb with the peer's own Python; return what it printed.

        Raises:
            PeerFailed: it ended with an error or took too long.
        """
        command = [str(self.python), self.peer.script, self.verb, *map(str, arguments)]
        try:
            done = subprocess.run(
                command,
                cwd=_SCRIPTS,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerFailed(f"{self.peer.name} took longer than {limit_s:g} s") from error
        if done.returncode != 0:
            raise PeerFailed(f"{self.peer.name}: {_last_line(done.stderr)}")
        return json.loads(done.stdout.splitlines()[-1])

    def until(self, count: int, *, limit_s: float) -> None:
        """Wait until so many jobs are done.

        Raises:
            PeerFailed: that took too long.
        """
        deadline = time.monotonic() + limit_s
        while self.tally.count < count:
            if time.monotonic() > deadline:
                said = _last_line((self.folder / "serve.log").read_text("utf-8", "replace"))
                raise PeerFailed(f"{self.peer.name} did {self.tally.count} of {count} jobs: {said}")
            time.sleep(0.05)


@contextmanager
def ground(peer: Peer, verb: str) -> Iterator[Ground]:
    """Give a peer a fresh Redis and folder.

    Raises:
        environments.CannotInstall: its environment cannot be made.
    """
    python = environments.python(peer.environment)
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        environment = {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith(("PYTHON", "PIXELKILN_"))
            },
            "BENCH_FOLDER": name,
            "BENCH_REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "BENCH_PORT": str(free_port()),
            "BENCH_VERB": verb,
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with redis_server(folder, port):
            yield Ground(
                peer=peer,
                verb=verb,
                python=python,
                folder=folder,
                environment=environment,
                tally=Tally(folder / "tally"),
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker with all its children: its session is its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
