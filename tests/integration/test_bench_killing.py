"""Kills of real processes: the keeper's sessions, and a small run of our own side."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import crashes
from bench.crash_counts import Strike, Trace
from bench.crash_sides import our_side
from bench.killing import Command, Keeper, Kill, strike_all
from bench.peers import stamps
from tests.worker_processes import wait_for

# A parent with a child that works for ever, as a launcher or a pool has.
CHILD = "import stamps, itertools\nfor job in itertools.count(): stamps.run(job, 200)"
PARENT = (
    f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CHILD!r}])\nimport time; time.sleep(600)"
)


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    environment = {
        **os.environ,
        "BENCH_FOLDER": str(tmp_path),
        "PYTHONPATH": str(Path(stamps.__file__).parent),
    }
    line = (sys.executable, "-c", PARENT)
    kept = Keeper([Command(line=line, environment=environment, folder=tmp_path, log=tmp_path / "log")])
    kept.start()
    yield kept
    kept.close()


def workers(keeper: Keeper) -> dict[int, int]:
    """Wait for a parent and its child."""
    return wait_for(lambda: found if len(found := keeper.workers()) == 2 else None, 20, "no child came up")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def strike(keeper: Keeper, folder: Path, *, whole: bool) -> Strike:
    [done] = strike_all([Kill(at_s=0.0, whole=whole, pick=0.5)], keeper, Trace(folder / "trace"), whole=True)
    return done


def test_a_kill_of_a_process_leaves_its_parent(keeper: Keeper, tmp_path: Path) -> None:
    before = workers(keeper)
    done = strike(keeper, tmp_path, whole=False)
    assert done.pid in before
    assert done.pid != before[done.pid]
    assert len(done.jobs) == 1
    assert list(keeper.workers()) == [before[done.pid]]


def test_a_kill_of_a_whole_worker_takes_all_and_another_comes(keeper: Keeper, tmp_path: Path) -> None:
    before = workers(keeper)
    strike(keeper, tmp_path, whole=True)
    after = wait_for(lambda: found if len(found := keeper.workers()) == 2 else None, 20, "nobody came back")
    assert not set(before) & set(after)


def test_a_closed_keeper_leaves_nobody(keeper: Keeper) -> None:
    before = workers(keeper)
    keeper.close()
    wait_for(lambda: not any(map(alive, before)) or None, 10, "somebody outlived the keeper")


@pytest.mark.slow
def test_a_small_run_of_ours_begins_again_what_was_killed_and_loses_nothing() -> None:
    with our_side() as side:
        played = crashes.play(side, 3, crashes.Size(jobs=120, kills=1))
    counted, [done] = played.count, played.strikes
    assert (counted.accepted, counted.lost, counted.stuck, counted.untrue) == (120, 0, 0, 0)
    assert len(played.process_s) == len(done.jobs) > 0
    assert counted.again == len(done.jobs) + counted.doubled  # who had ended, but was not published yet
