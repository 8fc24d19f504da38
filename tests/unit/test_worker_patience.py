"""Outages are waited out; loops go on whatever happens."""

from __future__ import annotations

import threading
import time

import pytest

from pixelkiln_shared.errors import RedisUnavailable, StorageUnavailable
from pixelkiln_worker.device import Device, DeviceThread
from pixelkiln_worker.loops import Loop
from pixelkiln_worker.patience import Unwanted, insist
from tests.worker_processes import wait_for


class Flaky:
    """Fails so often, then answers."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "done"


def test_an_outage_is_waited_out() -> None:
    action = Flaky(2, StorageUnavailable("away"))
    assert insist(action, lambda: True) == "done"
    assert action.calls == 3


def test_patience_ends() -> None:
    with pytest.raises(StorageUnavailable):
        insist(Flaky(9, StorageUnavailable("away")), lambda: True, patience_s=0)


def test_nobody_insists_for_a_result_that_is_not_wanted() -> None:
    action = Flaky(9, StorageUnavailable("away"))
    with pytest.raises(Unwanted):
        insist(action, lambda: action.calls < 2)
    assert action.calls == 2


def test_other_errors_are_not_waited_out() -> None:
    with pytest.raises(ValueError, match="a bug"):
        insist(Flaky(1, ValueError("a bug")), lambda: True)


@pytest.mark.parametrize("error", [RedisUnavailable("away"), ValueError("a bug")])
def test_a_loop_survives_what_its_action_raises(error: Exception) -> None:
    action = Flaky(1, error)
    loop = Loop("test", lambda: print(action()), 0.05)
    loop.start()
    wait_for(lambda: action.calls >= 3 or None, 3, "the loop died")
    loop.stop()


def test_a_loop_without_a_period_pauses_after_an_error() -> None:
    action = Flaky(1_000_000, RedisUnavailable("away"))
    loop = Loop("test", lambda: print(action()), 0.0)
    loop.start()
    time.sleep(0.6)
    loop.stop()
    assert action.calls < 5


def test_a_nudge_comes_before_the_period() -> None:
    called = threading.Semaphore(0)
    loop = Loop("test", called.release, 60)
    loop.start()
    assert called.acquire(timeout=2)
    loop.nudge()
    assert called.acquire(timeout=2)
    assert not called.acquire(timeout=0.05)
    loop.stop()


def test_the_device_thread_runs_one_thing_at_a_time_and_counts_its_time() -> None:
    device, names, running = DeviceThread(), set(), threading.Lock()

    def work() -> None:
        assert running.acquire(blocking=False)
        names.add(threading.current_thread().name)
        time.sleep(0.05)
        running.release()

    threads = [threading.Thread(target=lambda: device.run(work)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == {"device"}
    assert 0.2 <= device.busy_s <= device.up_s
    device.close()


def test_what_the_device_raises_reaches_the_caller() -> None:
    device = DeviceThread()
    with pytest.raises(ValueError, match="no"):
        device.run(lambda: int("no"))
    assert device.run(lambda: device.run(lambda: 7)) == 7  # from within: no deadlock
    device.close()


def test_settling_a_device_without_torch_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "torch", raising=False)
    device = Device(name="cpu", kind="cpu", memory_bytes=1, dtype_name="float32", threads=1)
    device.settle()
    device.free_caches()
