"""How a worker process tells the fleet of itself."""

from __future__ import annotations

import os
import socket
from datetime import datetime

from pixelkiln_shared import __version__
from pixelkiln_shared.fleet import LoadedModel, State, WorkerInfo
from pixelkiln_worker.residency import Resident
from pixelkiln_worker.workshop import Workshop


def of(shop: Workshop, state: State, *, started_at: datetime) -> WorkerInfo:
    """Return the report of this process as it is now."""
    return WorkerInfo(
        id=shop.worker_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=shop.device.name,
        state=state,
        reason=shop.refusals.note,
        models=tuple(dict.fromkeys(entry.id for entry in shop.lanes.values())),
        lanes=tuple(shop.lanes),
        resident=shop.residency.resident,
        loaded=tuple(_told(model) for model in shop.residency.residents),
        unavailable=shop.residency.unavailable,
        memory_bytes=shop.device.memory_bytes,
        longest_lane_wait_s=round(shop.longest_lane_wait_s, 1),
        running=tuple(job.id for job in shop.held.jobs()),
        jobs_done=shop.telemetry.totals().jobs_done,
        busy_share=round(shop.thread.busy_s / max(shop.thread.up_s, 1e-3), 4),
        device_time=shop.telemetry.shares.told(),
        tallies=shop.telemetry.tallies(lambda model: _max_batch(shop, model)),
        started_at=started_at,
        version=__version__,
    )


def _max_batch(shop: Workshop, model: str) -> int:
    """How many rows a batch of a model takes now."""
    lanes = {lane: entry for lane, entry in shop.lanes.items() if entry.id == model}
    sizes = shop.compute.sizes
    return max((sizes.offer(lane, entry.limits.max_batch) for lane, entry in lanes.items()), default=0)


def _told(model: Resident) -> LoadedModel:
    return LoadedModel(
        id=model.id,
        footprint_bytes=model.footprint_bytes,
        load_s=round(model.load_s, 3),
        sha256=model.sha256,
    )
