"""Who is alive on this machine: a lock that the kernel takes away, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixelkiln_shared.errors import Misconfigured
from pixelkiln_worker import presence
from pixelkiln_worker.presence import Presence

URL = "redis://:secret@127.0.0.1:6379/0"
PROGRAM = (
    "import sys, time; from pathlib import Path; from pixelkiln_worker.presence import Presence\n"
    "Presence(Path(sys.argv[1]), sys.argv[2]).hold(sys.argv[3]); print('there', flush=True); time.sleep(60)"
)


@contextmanager
def worker(folder: Path, name: str, url: str = URL) -> Iterator[subprocess.Popen[bytes]]:
    line = [sys.executable, "-c", PROGRAM, str(folder), url, name]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        try:
            yield process
        finally:
            process.kill()


def buried(folder: Path, url: str = URL) -> list[str]:
    names: list[str] = []
    Presence(folder, url).bury_dead(names.append)
    return names


def test_the_dead_are_buried_once_and_neither_the_living_nor_the_frozen(tmp_path: Path) -> None:
    with worker(tmp_path, "living"), worker(tmp_path, "frozen") as frozen, worker(tmp_path, "a.b-1") as dead:
        frozen.send_signal(signal.SIGSTOP)
        assert buried(tmp_path) == []
        dead.kill()
        dead.wait()
        assert buried(tmp_path) == ["a.b-1"]
        assert buried(tmp_path) == []
    assert sorted(buried(tmp_path)) == ["frozen", "living"]
    assert list(tmp_path.iterdir()) == []


def test_who_could_not_be_buried_is_found_again(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise RuntimeError(name)

    with worker(tmp_path, "dead"):
        pass
    with pytest.raises(RuntimeError, match="dead"):
        Presence(tmp_path, URL).bury_dead(fail)
    assert buried(tmp_path) == ["dead"]


def test_while_one_buries_another_does_not(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    with worker(tmp_path, "dead"):
        pass
    Presence(tmp_path, URL).bury_dead(lambda _: seen.append(buried(tmp_path)))
    assert seen == [[]]


def test_other_fleets_and_other_machines_bury_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker(tmp_path, "dead"):
        pass
    assert buried(tmp_path, "redis://127.0.0.1:6379/1") == []
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("of another kernel")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(presence, "_BOOT_ID", boot_id)
        assert buried(tmp_path) == []
    assert buried(tmp_path, URL.replace(":secret@", "")) == ["dead"]


def test_a_file_that_nobody_looks_for_goes_after_a_day(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with worker(tmp_path, name, "redis://gone"):
            pass
    with worker(tmp_path, "living", "redis://gone"):
        for path in (*tmp_path.glob("old*"), *tmp_path.glob("living*")):
            long_ago = time.time() - presence.FORGOTTEN_S - 1
            os.utime(path, (long_ago, long_ago))
        with worker(tmp_path, "next"):
            kept = {path.name.partition(".")[0] for path in tmp_path.iterdir()}
    assert kept == {"new", "living", "next"}


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    base = presence.base_folder(None)
    assert base.stat().st_mode & 0o777 == 0o700
    base.rmdir()
    base.symlink_to(tmp_path)
    with pytest.raises(Misconfigured, match="PIXELKILN_SPOOL_DIR"):
        presence.base_folder(None)
