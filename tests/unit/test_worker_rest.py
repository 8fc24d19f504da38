"""A worker at rest gives memory back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pixelkiln_shared import heap
from pixelkiln_worker.held import Gone
from tests.lifecycle_houses import House, lifecycle_house
from tests.worker_processes import stub_spec


@pytest.fixture
def house(redis_url: str) -> Iterator[House]:
    with lifecycle_house(redis_url) as house:
        yield house


@pytest.mark.parametrize("fails", [False, True])
def test_memory_is_given_back_once_after_a_spell_of_work(
    house: House, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    trims: list[None] = []
    monkeypatch.setattr(heap, "trim", lambda: trims.append(None))
    [job] = house.hold(stub_spec())
    if fails:
        house.shop.telemetry.failed("stub")
    else:
        house.shop.telemetry.done("stub", duration_s=1.0, upload_s=0.1, pictures=1)

    house.life.report()
    assert trims == []  # it still holds a job

    house.shop.held.leave([job.id], Gone.DRAINED)
    house.shop.held.settle(job)
    house.life.report()
    house.life.report()
    assert len(trims) == 1
