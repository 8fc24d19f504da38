"""A lifecycle on the in-memory ledger and a real Redis for the rest, with a handle on each part."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import redis

from pixelkiln_shared import pictures
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.fleet import Fleet
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.ledger.contract import LaneOffer
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.testing.bells import MemoryBells
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_shared.testing.storage import MemoryStorage
from pixelkiln_worker.compute import Compute
from pixelkiln_worker.device import Device, DeviceThread
from pixelkiln_worker.held import Held, HeldJob
from pixelkiln_worker.lifecycle import Lifecycle
from pixelkiln_worker.recall import Recall
from pixelkiln_worker.refusals import Refusals
from pixelkiln_worker.residency import Residency
from pixelkiln_worker.ringer import Ringer
from pixelkiln_worker.telemetry import Telemetry
from pixelkiln_worker.turns import Turns
from pixelkiln_worker.workshop import Workshop
from tests.worker_processes import new_job
from tests.workshops import spool_on

CPU = Device(name="cpu", kind="cpu", memory_bytes=10**9, dtype_name="float32", threads=1)
LANE = "generate.stub"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class House:
    """A lifecycle whose process ends by writing down its exit code."""

    life: Lifecycle
    shop: Workshop
    ledger: MemoryLedger
    bells: MemoryBells
    clock: Clock
    fleet: Fleet
    codes: list[int]
    redis_url: str
    ends: list[str]

    def put(self, spec: JobSpec) -> bool:
        return bool(self.ledger.submit([new_job(spec)]).ids)

    def hold(self, *specs: JobSpec) -> list[HeldJob]:
        self.ledger.submit([new_job(spec) for spec in specs])
        claim = self.ledger.claim("w1", [LaneOffer(lane=LANE, max_rows=8)], lease_s=15)
        assert claim is not None
        return self.shop.held.take(claim.jobs)


@contextmanager
def lifecycle_house(redis_url: str) -> Iterator[House]:
    """Open a house whose loops are called by hand."""
    clock = Clock()
    ledger, bells, turns, telemetry = MemoryLedger(clock), MemoryBells(), Turns(), Telemetry()
    lanes = {LANE: Catalogue.load(stub=True).lanes[LANE]}
    codes: list[int] = []
    ends: list[str] = []
    settings = Settings(redis_url=redis_url, drain_s=0.2, heartbeat_s=0.5)
    with (
        redis.Redis.from_url(redis_url, decode_responses=True) as client,
        ThreadPoolExecutor(1) as hands,
        spool_on(MemoryStorage()) as spool,
    ):
        shop = Workshop(
            worker_id="w1",
            lease_s=15,
            lanes=lanes,
            ledger=ledger,
            storage=MemoryStorage(),
            spool=spool,
            refusals=Refusals(spool),
            recall=Recall(MemoryStorage()),
            device=CPU,
            thread=DeviceThread(),
            residency=Residency(CPU, on_load=telemetry.loaded),
            compute=Compute(turns.progress, CPU.free_caches),
            turns=turns,
            held=Held(ledger),
            telemetry=telemetry,
            hands=hands,
            fetchers=hands,
            encoding=threading.Semaphore(2),
            decode=pictures.decode,
            ring_soon=lambda: None,
            hush_soon=lambda: None,
            draining=threading.Event(),
            end_poisoned=lambda jobs: None,
        )
        fleet = Fleet(client)
        life = Lifecycle(
            shop,
            ringer=Ringer(ledger, bells, lanes),
            fleet=fleet,
            client=client,
            settings=settings,
            exit_process=codes.append,
            end_celery=lambda: ends.append("SIGTERM"),
        )
        yield House(life, shop, ledger, bells, clock, fleet, codes, redis_url, ends)
        life.stop()
        shop.thread.close()
