"""Whole batches and rows that join at steps: small traces come out as by hand."""

from __future__ import annotations

import pytest

from bench.joining import DEVICES, Device, Wish, figures, joining, trace, whole

DEVICE = Device(name="round", fixed_s=1.0, row_s=1.0)  # one row 2 s a step, two rows 3 s


def test_a_whole_batch_runs_to_its_end_before_the_next() -> None:
    wishes = [Wish(at_s=0.0, steps=2), Wish(at_s=1.0, steps=2)]
    assert whole(DEVICE, wishes) == [8.0, 16.0]  # two steps and two for the edges, 2 s each


def test_only_jobs_of_as_many_steps_share_a_whole_batch() -> None:
    wishes = [Wish(at_s=0.0, steps=1), Wish(at_s=0.0, steps=2), Wish(at_s=0.0, steps=1)]
    assert whole(DEVICE, wishes) == [9.0, 17.0, 9.0]


def test_a_row_joins_at_the_next_step() -> None:
    wishes = [Wish(at_s=0.0, steps=2), Wish(at_s=1.0, steps=1)]
    # 2 s in, 2 s a step; then 2 s in for the second, 3 s for a step of both, 3 s out for both
    assert joining(DEVICE, wishes) == [12.0, 12.0]


@pytest.mark.parametrize("serve", [whole, joining])
@pytest.mark.parametrize("load", [0.3, 1.1])
def test_every_job_ends_after_its_own_work(serve: object, load: float) -> None:
    assert callable(serve)
    for device in DEVICES:
        wishes = trace(device, (5, 10), load=load, jobs=200, seed=1)
        ended = serve(device, wishes)
        assert all(
            end_s >= wish.at_s + wish.steps * device.step_s(1)
            for wish, end_s in zip(wishes, ended, strict=True)
        )
        # no device is faster than full batches from the first job to the last
        full_s = sum((wish.steps + 2) * device.step_s(8) / 8 for wish in wishes)
        assert max(ended) - wishes[0].at_s >= 0.99 * full_s


def test_figures_are_of_the_latency() -> None:
    wishes = [Wish(at_s=float(second), steps=1) for second in range(100)]
    told = figures(wishes, [second + 1.0 for second in range(100)])
    assert (told.p50_s, told.p95_s, told.per_s) == (1.0, 1.0, 1.0)
