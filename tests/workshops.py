"""A worker's workshop on the in-memory twins, with models that a test makes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pixelkiln_shared import pictures
from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.storage.contract import Storage
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_shared.testing.storage import MemoryStorage
from pixelkiln_worker.compute import Compute
from pixelkiln_worker.device import Device, DeviceThread
from pixelkiln_worker.families.contract import Load
from pixelkiln_worker.held import Held
from pixelkiln_worker.recall import Recall
from pixelkiln_worker.refusals import Refusals
from pixelkiln_worker.residency import Residency
from pixelkiln_worker.spool import Spool, own_folder
from pixelkiln_worker.telemetry import Telemetry
from pixelkiln_worker.turns import Turns
from pixelkiln_worker.workshop import Workshop

CPU = Device(name="cpu", kind="cpu", memory_bytes=10**9, dtype_name="float32", threads=1)


@contextmanager
def spool_on(storage: Storage, *, bound_bytes: int = 10**9, patience_s: float = 60.0) -> Iterator[Spool]:
    """Open a spool in a folder of its own."""
    with TemporaryDirectory() as base:
        spool = Spool(
            storage, own_folder(Path(base), name="w1"), bound_bytes=bound_bytes, patience_s=patience_s
        )
        yield spool
        spool.close()


@contextmanager
def workshop(
    lanes: Mapping[str, ModelEntry], load: Load, ring_soon: Callable[[], None] = lambda: None
) -> Iterator[tuple[Workshop, MemoryLedger, MemoryStorage]]:
    """Open a workshop that serves these lanes with what `load` makes of their entries."""
    ledger, storage, turns, telemetry = MemoryLedger(), MemoryStorage(), Turns(), Telemetry()
    with ThreadPoolExecutor(4) as hands, ThreadPoolExecutor(8) as fetchers, spool_on(storage) as spool:
        shop = Workshop(
            worker_id="w1",
            lease_s=15,
            lanes=dict(lanes),
            ledger=ledger,
            storage=storage,
            spool=spool,
            refusals=Refusals(spool),
            recall=Recall(storage),
            device=CPU,
            thread=DeviceThread(),
            residency=Residency(CPU, load, telemetry.loaded),
            compute=Compute(turns.progress, CPU.free_caches),
            turns=turns,
            held=Held(ledger),
            telemetry=telemetry,
            hands=hands,
            fetchers=fetchers,
            encoding=threading.Semaphore(2),
            decode=pictures.decode,
            ring_soon=ring_soon,
            hush_soon=lambda: None,
            draining=threading.Event(),
            end_poisoned=lambda jobs: None,
        )
        yield shop, ledger, storage
        shop.thread.close()
