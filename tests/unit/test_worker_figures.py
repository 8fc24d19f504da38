"""What a worker tells of itself, and what it learns from what others tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.jobs import Status
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Model
from pixelkiln_worker.firing import fire
from tests.lifecycle_houses import House, lifecycle_house
from tests.worker_processes import stub_spec


@pytest.fixture
def house(redis_url: str) -> Iterator[House]:
    with lifecycle_house(redis_url) as house:
        yield house


def test_jobs_of_a_model_that_no_worker_can_load_are_told_so_at_once(house: House) -> None:
    def missing(entry: ModelEntry, device: Device) -> Model:
        raise ModelUnavailable("no weights")

    house.shop.residency._load = missing
    ids = [spec.id for spec in (stub_spec(steps=steps) for steps in range(1, 6)) if house.put(spec)]
    fire(house.shop)
    assert fire(house.shop) == "nothing waits"  # the model rests: another worker may have it
    house.life.report()
    while fire(house.shop) != "nothing waits":
        pass
    assert {house.ledger.get(name).status for name in ids} == {Status.FAILED}


def test_jobs_wait_while_another_worker_may_load_the_model(house: House) -> None:
    def missing(entry: ModelEntry, device: Device) -> Model:
        raise ModelUnavailable("no weights")

    house.life.report()
    [info] = house.fleet.workers()
    house.fleet.report(info.model_copy(update={"id": "w2"}))
    house.shop.residency._load = missing
    for steps in (1, 2):
        house.put(stub_spec(steps=steps))
    fire(house.shop)
    house.life.report()
    assert fire(house.shop) == "nothing waits"
    assert house.ledger.counts("tests")[Status.QUEUED] == 1


def test_the_report_tells_how_the_device_spent_its_time_and_what_each_model_did(house: House) -> None:
    house.life.ready()
    house.put(stub_spec(device_ms=30))
    fire(house.shop)
    house.life.report()
    [info] = house.fleet.workers()
    tally = info.tallies["stub"]
    assert (tally.loads, tally.batches, tally.rows, tally.succeeded, tally.pictures) == (1, 1, 1, 1, 1)
    assert tally.max_batch == 8
    assert tally.run_s >= 0.03
    assert info.device_time.busy_s >= 0.03
    assert info.device_time.load_s > 0


def test_the_models_that_have_jobs_waiting_are_learned_from_the_ringer(house: House) -> None:
    house.put(stub_spec())
    house.life._ringer.ring()
    assert house.shop.telemetry.waiting == {"stub"}
