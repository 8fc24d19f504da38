"""One firing prepares, one has the device, and nobody claims earlier than needed."""

from __future__ import annotations

import threading
import time

import pytest

from pixelkiln_worker.turns import TOP_UP_S, Turns
from tests.worker_processes import wait_for


def never() -> bool:
    return False


def waits(turns: Turns) -> float:
    """Return how long a firing is held back from claiming."""
    began = time.monotonic()
    turns.await_lead(never)
    return time.monotonic() - began


def busy(turns: Turns, kind: str, seconds: float) -> threading.Thread:
    """Run a batch of a kind in the background; returns once it has the device."""
    running = threading.Event()

    def run() -> None:
        with turns.device_slot(), turns.running(kind):
            running.set()
            time.sleep(seconds)

    thread = threading.Thread(target=run)
    thread.start()
    running.wait(5)
    return thread


def test_a_free_device_is_claimed_for_at_once() -> None:
    turns = Turns()
    assert not turns.must_wait
    assert waits(turns) < 0.05


def test_without_a_forecast_the_device_must_be_free() -> None:
    turns = Turns()
    thread = busy(turns, "new", 0.3)
    assert waits(turns) > 0.2
    thread.join()


def test_a_batch_of_known_length_is_prepared_for_shortly_before_it_ends() -> None:
    turns = Turns()
    busy(turns, "known", 0.4).join()
    thread = busy(turns, "known", 0.4)
    assert 0.1 < waits(turns) < 0.38
    assert thread.is_alive()
    thread.join()


def test_progress_makes_a_forecast_of_an_unknown_batch() -> None:
    turns = Turns()
    thread = busy(turns, "new", 1.0)
    time.sleep(0.1)
    turns.progress(9, 10)  # nine tenths in a tenth of a second: nearly done
    assert waits(turns) < 0.2
    thread.join()


def test_one_firing_prepares_at_a_time() -> None:
    turns = Turns()
    order: list[str] = []
    with turns.next_slot() as slot:
        second = threading.Thread(target=lambda: _enter(turns, order))
        second.start()
        time.sleep(0.05)
        assert turns.must_wait
        order.append("first")
        slot.release()
        wait_for(lambda: len(order) == 2 or None, 2, "the second firing never prepared")
    second.join()
    assert order == ["first", "second"]


def test_a_drain_ends_the_waiting() -> None:
    turns = Turns()
    thread = busy(turns, "new", 0.5)
    began = time.monotonic()
    turns.await_lead(lambda: True)
    assert time.monotonic() - began < 0.1
    thread.join()


def _enter(turns: Turns, order: list[str]) -> None:
    with turns.next_slot():
        order.append("second")


def test_a_batch_is_topped_up_as_late_as_fetching_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pixelkiln_worker.turns.time.monotonic", lambda: now[0])
    turns = Turns()
    assert turns.until_last_call_s(0.1) == TOP_UP_S  # nothing is known of what runs
    with turns.device_slot(), turns.running("a kind"):
        turns.progress(1, 1)
        now[0] += 1.0
        turns.progress(1, 2)  # it ends at 102
        assert turns.until_last_call_s(0.1) == pytest.approx(0.792)
        now[0] = 101.8
        assert turns.until_last_call_s(0.1) == 0.0
        now[0] = 101.95
        assert turns.until_last_call_s(0.1) == pytest.approx(0.1)  # too late, unless it takes longer
        now[0] = 102.2
        assert turns.until_last_call_s(0.1) == 0.0
