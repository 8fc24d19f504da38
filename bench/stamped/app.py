"""The worker's Celery app, over a stub that stamps each batch of the benchmark at its start and its end."""

from __future__ import annotations

from collections.abc import Sequence

from bench.peers import stamps
from bench.stage import TENANT
from pixelkiln_worker.app import app
from pixelkiln_worker.families.contract import Outcome, Task, Watch
from pixelkiln_worker.families.stub import StubModel

__all__ = ["app"]

_plain = StubModel.run


def _stamped(self: StubModel, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
    jobs = [int(task.spec.input["seed"]) for task in batch if task.spec.tenant == TENANT]
    stamps.stamp(jobs, stamps.STARTED)
    outcomes = _plain(self, batch, watch)
    stamps.stamp(jobs, stamps.ENDED)
    return outcomes


StubModel.run = _stamped  # type: ignore[method-assign]
