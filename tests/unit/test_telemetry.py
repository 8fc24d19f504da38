"""What a worker counts, model by model."""

from __future__ import annotations

import threading

from pixelkiln_worker.telemetry import BOUNDS_S, Telemetry


def test_models_are_counted_apart() -> None:
    telemetry = Telemetry()
    telemetry.loaded("a", 3.0, switched=False)
    telemetry.loaded("a", 4.0, switched=True)
    telemetry.claimed("a", [0.05, 700.0])
    telemetry.batch("a", rows=5, run_s=1.5)
    telemetry.batch("a", rows=3, run_s=0.5)
    telemetry.done("a", duration_s=2.0, upload_s=0.2, pictures=4)
    telemetry.failed("b")
    told = telemetry.tallies({"a": 4, "b": 8}.__getitem__)
    a, b = told["a"], told["b"]
    assert (a.loads, a.switches, a.batches, a.rows, a.succeeded, a.pictures) == (2, 1, 2, 8, 1, 4)
    assert (a.run_s, a.max_batch) == (2.0, 4)
    assert (b.failed, b.succeeded, b.max_batch) == (1, 0, 8)
    assert a.load is not None
    assert a.load.sum == 7.0
    totals = telemetry.totals()
    assert (totals.batches, totals.rows, totals.jobs_done, totals.jobs_failed) == (2, 8, 1, 1)


def test_an_observation_falls_into_the_first_bound_it_does_not_exceed() -> None:
    telemetry = Telemetry()
    telemetry.claimed("a", [0.0, 0.1, 0.11, 600.0, 601.0])
    waits = telemetry.tallies(lambda _: 1)["a"].queue_wait
    assert waits is not None
    assert waits.bounds == BOUNDS_S
    assert (waits.counts[0], waits.counts[1], waits.counts[-2], waits.counts[-1]) == (2, 1, 1, 1)
    assert sum(waits.counts) == 5


def test_many_threads_lose_no_count() -> None:
    telemetry = Telemetry()

    def count() -> None:
        for _ in range(500):
            telemetry.done("a", duration_s=0.1, upload_s=0.1, pictures=1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert telemetry.totals().jobs_done == 2_000


def test_the_models_that_have_jobs_waiting_are_known() -> None:
    telemetry = Telemetry()
    telemetry.counted({"generate.a": 3, "edit.b": 0, "segment.c": 1})
    assert telemetry.waiting == {"a", "c"}
