"""What the firings of one process share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.ledger.contract import Ledger
from pixelkiln_shared.storage.contract import Storage
from pixelkiln_worker import choices, inputs
from pixelkiln_worker.compute import Compute
from pixelkiln_worker.device import Device, DeviceThread
from pixelkiln_worker.held import Held, HeldJob
from pixelkiln_worker.recall import Recall
from pixelkiln_worker.refusals import Refusals
from pixelkiln_worker.residency import Residency
from pixelkiln_worker.spool import Spool
from pixelkiln_worker.telemetry import Telemetry
from pixelkiln_worker.turns import Turns


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """The rooms of a worker process.

    Attributes:
        lanes: what this worker serves, by lane.
        recall: what models worked out about pictures before.
        spool: what is finished and waits for the store.
        refusals: what speaks against claiming now.
        hands: threads that deliver, so that a batch's results travel side by side.
        fetchers: the same for its inputs; apart, so that a store that hangs holds back no result.
        encoding: how many of them may encode at once: as many as there are processors.
        ring_soon: asks for the bells to be topped up, from another thread.
        hush_soon: the same, and for surplus bells to be taken away first.
        end_poisoned: ends the process, whose device is broken since these jobs ran; does not return.
    """

    worker_id: str
    lease_s: float
    lanes: dict[str, ModelEntry]
    ledger: Ledger
    storage: Storage
    spool: Spool
    refusals: Refusals
    recall: Recall
    device: Device
    thread: DeviceThread
    residency: Residency
    compute: Compute
    turns: Turns
    held: Held
    telemetry: Telemetry
    hands: Executor
    fetchers: Executor
    encoding: threading.Semaphore
    decode: inputs.Decode
    ring_soon: Callable[[], None]
    hush_soon: Callable[[], None]
    draining: threading.Event
    end_poisoned: Callable[[Sequence[HeldJob]], None]

    @property
    def longest_lane_wait_s(self) -> float:
        """A bound for how long a lane with waiting jobs is passed over here, by what is known so far."""
        models = {lane: entry.id for lane, entry in self.lanes.items()}
        return choices.longest_wait_s(models, self.residency.loads_s, self.residency.runs_s)
