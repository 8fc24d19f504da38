"""One firing prepares, one has the device, and nobody claims earlier than needed."""

from __future__ import annotations

import threading
import time

from pixelkiln_worker.turns import Turns
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
