"""Loading before anybody asks: one model first, the rest between jobs, none in another's place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.ledger.contract import LaneOffer
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_worker import warming
from pixelkiln_worker.held import Gone
from pixelkiln_worker.workshop import Workshop
from tests.worker_processes import new_job, stub_spec, wait_for
from tests.workshops import CPU, workshop

STUB = Catalogue.load(stub=True).lanes["generate.stub"]
NAMES = ("a", "b", "c")


class Loaded:
    """A model of a given size."""

    def __init__(self, footprint_bytes: int) -> None:
        self.footprint_bytes = footprint_bytes
        self.identity: dict[str, Any] = {}
        self.max_rows = 1

    def close(self) -> None:
        """Nothing to drop."""


class Shelf:
    """Loads models of one size; those named in `broken` do not load."""

    def __init__(self) -> None:
        self.footprint_bytes = 1
        self.broken: set[str] = set()

    def __call__(self, entry: ModelEntry, device: object) -> Any:
        if entry.id in self.broken:
            raise ModelUnavailable(f"{entry.id} is broken")
        return Loaded(self.footprint_bytes)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def house(shelf: Shelf) -> Iterator[tuple[Workshop, MemoryLedger]]:
    lanes = {f"generate.{name}": STUB.model_copy(update={"id": name}) for name in NAMES}
    with workshop({"generate.stub": STUB, **lanes}, shelf) as (shop, ledger, _):
        yield shop, ledger


@pytest.fixture
def shop(house: tuple[Workshop, MemoryLedger]) -> Workshop:
    return house[0]


def resident(shop: Workshop, *names: str) -> None:
    wait_for(lambda: set(shop.residency.resident) == set(names) or None, 3, f"not {names}")


def test_one_is_loaded_first_and_the_others_afterwards(shop: Workshop) -> None:
    rest = warming.begin(shop, all_of_them=True)
    assert shop.residency.resident == ("stub",)
    warming.go_on(shop, rest)
    resident(shop, "stub", *NAMES)


def test_one_that_is_broken_stops_no_other(shop: Workshop, shelf: Shelf) -> None:
    shelf.broken = {"stub", "b"}
    warming.go_on(shop, warming.begin(shop, all_of_them=True))
    resident(shop, "a", "c")
    assert set(shop.residency.unavailable) == {"stub", "b"}


def test_none_is_loaded_in_the_place_of_another(shop: Workshop, shelf: Shelf) -> None:
    shelf.footprint_bytes = int(CPU.memory_bytes * 0.4)
    warming.go_on(shop, warming.begin(shop, all_of_them=True))
    resident(shop, "stub", "a")
    time.sleep(0.2)
    assert shop.residency.resident == ("stub", "a")


def test_jobs_in_hand_go_first(house: tuple[Workshop, MemoryLedger]) -> None:
    shop, ledger = house
    rest = warming.begin(shop, all_of_them=True)
    spec = stub_spec()
    ledger.submit([new_job(spec)])
    claim = ledger.claim("w1", [LaneOffer(lane="generate.stub", max_rows=1)], lease_s=15)
    assert claim is not None
    [job] = shop.held.take(claim.jobs)
    warming.go_on(shop, rest)
    time.sleep(0.3)
    assert shop.residency.resident == ("stub",)
    shop.held.leave([job.id], Gone.LOST)
    shop.held.settle(job)
    resident(shop, "stub", *NAMES)


def test_a_worker_that_drains_loads_no_more(shop: Workshop) -> None:
    rest = warming.begin(shop, all_of_them=True)
    shop.draining.set()
    warming.go_on(shop, rest)
    time.sleep(0.2)
    assert shop.residency.resident == ("stub",)
