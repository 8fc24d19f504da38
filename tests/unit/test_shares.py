"""How the device's time is divided, by a clock that moves when told."""

from __future__ import annotations

import pytest

from pixelkiln_shared.fleet import DeviceTime
from pixelkiln_worker.shares import Shares


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shares(clock: Clock) -> Shares:
    return Shares(clock)


def total(told: DeviceTime) -> float:
    return told.busy_s + told.load_s + told.idle_waiting_s + told.idle_no_work_s


def test_every_moment_is_counted_once(shares: Shares, clock: Clock) -> None:
    clock.tick(1)  # nothing to do
    shares.claiming()
    clock.tick(2)  # a claim that brings jobs
    shares.claimed(got=True)
    clock.tick(4)  # fetching
    with shares.loading():
        clock.tick(8)
    with shares.running():
        clock.tick(16)
    shares.let_go()
    clock.tick(32)
    assert shares.told() == DeviceTime(busy_s=16, load_s=8, idle_waiting_s=6, idle_no_work_s=33)
    assert total(shares.told()) == clock.now - 100


def test_a_claim_in_vain_is_no_waiting(shares: Shares, clock: Clock) -> None:
    shares.claiming()
    clock.tick(3)
    assert total(shares.told()) == 3
    shares.claimed(got=False)
    assert shares.told() == DeviceTime(idle_no_work_s=3)


def test_the_device_waits_while_jobs_of_its_lanes_do(shares: Shares, clock: Clock) -> None:
    shares.lanes_wait(True)
    clock.tick(2)
    shares.lanes_wait(False)
    clock.tick(1)
    assert shares.told() == DeviceTime(idle_waiting_s=2, idle_no_work_s=1)


def test_a_batch_that_waits_behind_another_is_no_idle_time(shares: Shares, clock: Clock) -> None:
    for _ in range(2):
        shares.claiming()
        shares.claimed(got=True)
    with shares.running():
        clock.tick(5)
    shares.let_go()
    clock.tick(0.5)
    with shares.running():
        clock.tick(5)
    shares.let_go()
    clock.tick(1)
    assert shares.told() == DeviceTime(busy_s=10, idle_waiting_s=0.5, idle_no_work_s=1)


def test_time_counts_from_when_the_worker_is_ready(shares: Shares, clock: Clock) -> None:
    with shares.loading():
        clock.tick(9)
    shares.begin()
    clock.tick(1)
    assert shares.told() == DeviceTime(idle_no_work_s=1)


def test_a_model_that_raises_ends_its_busy_time(shares: Shares, clock: Clock) -> None:
    def broken() -> None:
        with shares.running():
            clock.tick(2)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    clock.tick(3)
    assert shares.told() == DeviceTime(busy_s=2, idle_no_work_s=3)
