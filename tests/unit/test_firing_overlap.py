"""What goes on beside the device: a batch fills up, inputs come or hang, and the device waits for none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from pixelkiln_shared.jobs import Status
from pixelkiln_worker import firing
from pixelkiln_worker.firing import fire
from tests.firing_houses import (
    House,
    firing_house,
    in_background,
    segment_spec,
    stored,
    unloadable,
)
from tests.worker_processes import stub_spec, wait_for


@pytest.fixture
def house() -> Iterator[House]:
    with firing_house() as house:
        yield house


@contextmanager
def occupied(house: House) -> Iterator[None]:
    """Keep the device with a batch that seems about to end, so that the next firing claims at once."""
    taken, done = threading.Event(), threading.Event()

    def occupy() -> None:
        with house.shop.turns.device_slot(), house.shop.turns.running("an earlier batch"):
            house.shop.turns.progress(1, 1)
            taken.set()
            done.wait(10)

    earlier = in_background(lambda: house.shop.thread.run(occupy))
    assert taken.wait(5)
    yield
    done.set()
    earlier.join(10)


def until_running(house: House, name: str) -> None:
    wait_for(lambda: house.ledger.get(name).status is Status.RUNNING or None, 5, "it was not claimed")


def test_a_batch_that_waits_for_the_device_is_filled_up(house: House) -> None:
    with occupied(house):
        [first] = house.submit(stub_spec("first"))
        fired = in_background(lambda: fire(house.shop))
        until_running(house, first)
        [second] = house.submit(stub_spec("second"))
        until_running(house, second)
    fired.join(10)
    assert house.brush.batches == [["first", "second"]]


def test_the_device_thread_asks_neither_ledger_nor_store(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            by_thread.append((threading.current_thread().name, name))
            return method(*args, **kwargs)

        return call

    by_thread: list[tuple[str, str]] = []
    for part in (house.ledger, house.storage):
        for name in ("claim", "top_up", "fail", "publish_many", "release", "get", "put"):
            if hasattr(part, name):
                monkeypatch.setattr(part, name, watched(name, getattr(part, name)))
    with occupied(house):
        first, *_ = house.submit(*(segment_spec(stored(house)) for _ in range(2)))
        fired = in_background(lambda: fire(house.shop))
        until_running(house, first)
        [late] = house.submit(segment_spec(stored(house)))
        until_running(house, late)
    fired.join(10)
    house.shop.residency._load = unloadable
    house.run(stub_spec())
    assert {"claim", "top_up", "fail", "publish_many", "get", "put"} <= {name for _, name in by_thread}
    assert "device" not in {thread for thread, _ in by_thread}


def test_a_store_that_hangs_during_a_top_up_does_not_hold_up_the_batch_that_is_ready(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, freed = threading.Event(), threading.Event()
    get = house.storage.get

    def hang(key: str) -> bytes:
        if "slow" in key:
            hanging.set()
            assert freed.wait(10)
        return get(key)

    monkeypatch.setattr(house.storage, "get", hang)
    with occupied(house):
        [ready] = house.submit(segment_spec(stored(house)))
        fired = in_background(lambda: fire(house.shop))
        until_running(house, ready)
        [late] = house.submit(segment_spec(stored(house, "t/uploads/slow")))
        assert hanging.wait(5)
    fired.join(10)  # though the store hangs still
    assert house.ledger.get(ready).status is Status.SUCCEEDED
    assert house.ledger.get(late).status is Status.QUEUED
    assert house.shop.held.jobs() == []
    freed.set()
    fire(house.shop)
    assert (house.ledger.get(late).status, house.ledger.get(late).strikes) == (Status.SUCCEEDED, 0)
    assert [len(batch) for batch in house.brush.batches] == [1, 1]


def test_inputs_that_do_not_come_let_jobs_without_inputs_pass(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing, "LONG_FETCH_S", 0.05)
    freed = threading.Event()
    get = house.storage.get
    monkeypatch.setattr(house.storage, "get", lambda key: get(key) if freed.wait(10) else b"")
    [stuck] = house.submit(segment_spec(stored(house)))
    waiting = in_background(lambda: fire(house.shop))
    until_running(house, stuck)
    [record] = house.run(stub_spec())
    assert record.status is Status.SUCCEEDED
    freed.set()
    waiting.join(10)
    assert house.ledger.get(stuck).status is Status.SUCCEEDED


def test_jobs_without_pictures_go_on_while_pictures_cannot_be_had(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing, "LONG_FETCH_S", 0.05)
    pictures = [segment_spec(stored(house, f"t/uploads/u{number}")) for number in range(3)]
    house.storage.outage = True
    stuck = []
    for spec in pictures[:2]:
        [name] = house.submit(spec)
        stuck.append(in_background(lambda: fire(house.shop)))
        until_running(house, name)
    wait_for(lambda: not house.shop.turns.may_fetch or None, 5, "a third would wait for pictures")
    [left] = house.submit(pictures[2])

    [plain] = house.run(stub_spec("plain"))

    assert house.brush.batches == [["plain"]]
    assert house.ledger.get(left).status is Status.QUEUED
    house.storage.outage = False
    for firing_under_way in stuck:
        firing_under_way.join(10)
    fire(house.shop)

    def ended(job_id: str) -> bool | None:
        return house.ledger.get(job_id).status.terminal or None

    for name in [plain.id, *(spec.id for spec in pictures)]:
        wait_for(partial(ended, name), 10, "it did not end")
        assert house.ledger.get(name).status is Status.SUCCEEDED
