"""What a worker measures of its batches, until its report tells it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.costs import Measured
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import stub
from pixelkiln_worker.firing import fire
from pixelkiln_worker.workshop import Workshop
from tests.worker_processes import new_job, stub_spec
from tests.workshops import workshop

LANE = "generate.stub"
LOADING_S = 0.03


@dataclass
class House:
    """A workshop that serves the stub."""

    shop: Workshop
    ledger: MemoryLedger

    def run(self, *specs: JobSpec) -> Measured:
        self.ledger.submit([new_job(spec) for spec in specs])
        fire(self.shop)
        return self.shop.telemetry.take_measured().get(LANE, Measured())


@pytest.fixture
def house() -> Iterator[House]:
    def load(entry: ModelEntry, device: Device) -> stub.StubModel:
        time.sleep(LOADING_S)
        return stub.load(entry, device)

    with workshop({LANE: Catalogue.load(stub=True).lanes[LANE]}, load) as (shop, ledger, _):
        yield House(shop, ledger)


def large(**more: Any) -> JobSpec:
    """Return a job of 4 steps at half a megapixel: 2097 of work."""
    return stub_spec(width=1_024, height=512, steps=4, device_ms=20, per_item_ms=0, **more)


def test_a_batch_is_one_measurement_of_all_its_work(house: House) -> None:
    measured = house.run(large(), large())
    assert (measured.work, measured.batches) == (2 * 2_097, 1)
    assert measured.seconds >= 0.02


def test_the_load_is_told_apart_and_only_once(house: House) -> None:
    first, second = house.run(large()), house.run(large())
    assert first.load_s is not None
    assert first.load_s >= LOADING_S
    assert second.load_s is None


def test_several_batches_add_up_until_they_are_told(house: House) -> None:
    house.ledger.submit([new_job(large())])
    fire(house.shop)
    assert house.run(large()).work == 2 * 2_097
    assert house.shop.telemetry.take_measured() == {}


@pytest.mark.parametrize("fault", ["error", "oom_alone"])
def test_a_batch_in_which_a_job_failed_teaches_nothing(house: House, fault: str) -> None:
    house.run(large())
    assert house.run(large(), large(prompt=f"a hill [fail={fault}]")) == Measured()


def test_the_work_a_worker_measures_is_the_work_the_ledger_adds_up(house: House) -> None:
    house.ledger.submit([new_job(large())])
    [lane] = house.ledger.lanes()
    fire(house.shop)
    assert house.shop.telemetry.take_measured()[LANE].work == lane.work
