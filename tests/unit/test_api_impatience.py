"""A store that is silent holds some of the API's threads and no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pixelkiln.api.impatience import ImpatientStorage
from pixelkiln_shared.errors import NotFound, StorageUnavailable
from pixelkiln_shared.ledger.silence import ASK_AGAIN_S
from pixelkiln_shared.testing.storage import MemoryStorage

PLACES, CALLERS = 4, 16
SOON_S = 20.0  # generous; the calls below would otherwise never end


class SilentStorage(MemoryStorage):
    """Answers no `get` until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.spoken = threading.Event()

    def get(self, key: str) -> bytes:
        self.spoken.wait()
        return super().get(key)


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(CALLERS) as pool:
        yield pool


def impatient(storage: MemoryStorage) -> ImpatientStorage:
    storage.put("a", b"bytes", media_type="image/png")
    return ImpatientStorage(storage, places=PLACES, wait_s=0.05)


def test_callers_beyond_the_places_hear_at_once_that_a_silent_store_is_away(
    callers: ThreadPoolExecutor,
) -> None:
    silent = SilentStorage()
    store = impatient(silent)
    calls = [callers.submit(store.get, "a") for _ in range(CALLERS)]

    until = time.monotonic() + SOON_S
    while sum(call.done() for call in calls) < CALLERS - PLACES and time.monotonic() < until:
        time.sleep(0.02)
    ended = [call for call in calls if call.done()]
    silent.spoken.set()

    assert len(ended) == CALLERS - PLACES
    assert all(isinstance(call.exception(), StorageUnavailable) for call in ended)
    assert [call.result() for call in calls if call not in ended] == [b"bytes"] * PLACES


def test_one_answer_ends_the_silence() -> None:
    memory = MemoryStorage()
    store = impatient(memory)
    memory.outage = True
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            store.get("a")
    memory.outage = False
    time.sleep(ASK_AGAIN_S)

    assert [store.get("a") for _ in range(3)] == [b"bytes"] * 3


def test_a_missing_object_is_an_answer() -> None:
    store = impatient(MemoryStorage())

    for _ in range(PLACES + 1):
        with pytest.raises(NotFound):
            store.get("b")

    assert store.get("a") == b"bytes"


def test_a_listing_gives_its_place_back_when_it_is_left_early() -> None:
    store = impatient(MemoryStorage())

    found = [next(iter(store.list(""))).key for _ in range(PLACES + 1)]

    assert found == ["a"] * (PLACES + 1)
