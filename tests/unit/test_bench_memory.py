"""P11: what the samples of a long life are taken to show."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from bench import p11_memory
from bench.p11_memory import Footprint, Sample, footprint, growth, rows


def life(*, jobs: int = 3_000, worker_leaks: int = 0, handles_leak: int = 0) -> list[Sample]:
    """A worker that warms up to 100 MB in 500 jobs; it leaks so many bytes and handles a hundred jobs."""
    steps = range(100, jobs + 1, 100)
    return [
        Sample(
            jobs=done,
            worker=Footprint(
                rss_bytes=100_000_000 + min(0, done - 500) * 10_000 + done // 100 * worker_leaks,
                handles=20 + done // 100 * handles_leak,
                threads=24,
            ),
            api=Footprint(rss_bytes=80_000_000, handles=9, threads=3),
            scratch_files=0,
            redis_keys=10 + 3 * done,
            redis_bytes=1_000_000 + 2_000 * done,
        )
        for done in steps
    ]


def test_warming_up_is_no_growth() -> None:
    assert [row.met for row in rows("stub", life())] == [True] * 4
    assert rows("stub", life())[0].ratio == 1.0


def test_a_worker_that_grows_by_a_tenth_misses_the_goal() -> None:
    worker, _, api, _ = rows("stub", life(worker_leaks=400_000))

    assert (worker.met, api.met) == (False, True)
    assert worker.ours > 1.05 * worker.peer


def test_growth_of_four_per_cent_is_within_the_goal() -> None:
    assert rows("stub", life(worker_leaks=160_000))[0].met


def test_handles_that_are_never_closed_miss_the_goal() -> None:
    _, worker, _, api = rows("stub", life(handles_leak=2))

    assert (worker.met, api.met) == (False, True)


def test_a_pool_may_open_a_connection_for_each_thread_late() -> None:
    samples = life()
    full = [replace(one, worker=replace(one.worker, handles=20 + 24)) for one in samples[-3:]]

    assert rows("stub", [*samples[:-3], *full])[1].met


def test_one_odd_sample_decides_nothing() -> None:
    samples = life()
    odd = replace(samples[-1], worker=replace(samples[-1].worker, rss_bytes=10**9))

    assert growth([*samples[:-1], odd], "worker", "rss_bytes") == (100_000_000, 100_000_000)


def test_rows_tell_what_redis_keeps_of_a_finished_job() -> None:
    assert "3.0 keys and 2000 bytes a finished job" in rows("stub", life())[0].caveat


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux tells")
def test_a_process_that_opens_a_file_has_a_handle_more() -> None:
    before = footprint(os.getpid())
    with open(os.devnull, "rb"):
        during = footprint(os.getpid())

    assert during.handles == before.handles + 1
    assert during.rss_bytes > 10_000_000
    assert during.threads >= 1


def test_elsewhere_than_on_linux_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.exists", lambda _: False)

    [row] = p11_memory.run(1, full=False)

    assert row.met is None
    assert "Linux" in row.caveat
