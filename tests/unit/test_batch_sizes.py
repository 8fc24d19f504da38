"""A worker that learns, from the stub's cost curve, how many rows to take at once."""

from __future__ import annotations

from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.jobs import Result
from pixelkiln_worker import families
from pixelkiln_worker.firing import fire
from tests.worker_processes import new_job, stub_spec
from tests.workshops import workshop

LANE = "generate.stub"


def test_a_batch_of_eight_dearer_than_two_of_four_is_no_longer_claimed() -> None:
    with workshop({LANE: Catalogue.load(stub=True).lanes[LANE]}, families.load) as (shop, ledger, _):
        curve = {"device_ms": 80, "per_item_ms": 10, "knee": 4, "knee_ms": 100}
        specs = [stub_spec(str(number), **curve) for number in range(60)]
        ledger.submit([new_job(spec) for spec in specs])
        while fire(shop) != "nothing waits":
            pass
        results = [Result.model_validate_json(ledger.get(spec.id).result or "") for spec in specs]
        sizes = [int(result.metrics["batch_size"]) for result in results]
        assert sizes[:24] == [8] * 24
        assert sizes[-12:] == [4] * 12
        told = shop.telemetry.tallies(lambda model: shop.compute.sizes.offer(LANE, 8))
        assert told["stub"].max_batch == 4
