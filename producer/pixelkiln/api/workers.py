"""`/v1/workers`: who works, how its time went, and the wish that it ends."""

from __future__ import annotations

from fastapi import APIRouter

from pixelkiln.api.auth import CurrentCaller
from pixelkiln.api.responses import problems
from pixelkiln.api.services import Parts
from pixelkiln.resources import DeviceTimeResource, LoadedResource, TallyResource, WorkerList, WorkerResource
from pixelkiln_shared.fleet import ModelTally, WorkerInfo

router = APIRouter(tags=["status"])


@router.get("/v1/workers", response_model=WorkerList, responses=problems())
def workers(parts: Parts, caller: CurrentCaller) -> WorkerList:
    """List the live worker processes."""
    return WorkerList(data=[shown(info) for info in parts.fleet.workers()])


@router.post(
    "/v1/workers/{worker_id}/drain", status_code=202, response_model=WorkerResource, responses=problems()
)
def drain(worker_id: str, parts: Parts, caller: CurrentCaller) -> WorkerResource:
    """Ask a worker to end what it runs, claim no more and stay down; asking twice changes nothing."""
    return shown(parts.fleet.drain(worker_id))


def shown(info: WorkerInfo) -> WorkerResource:
    """Return a worker as users see it."""
    return WorkerResource(
        id=info.id,
        host=info.host,
        device=info.device,
        state=info.state,
        reason=info.reason,
        models=list(info.models),
        resident=list(info.resident),
        loaded=[LoadedResource(**one.model_dump()) for one in info.loaded],
        unavailable=info.unavailable,
        memory_bytes=info.memory_bytes,
        longest_lane_wait_s=info.longest_lane_wait_s,
        running=list(info.running),
        started_at=info.started_at,
        jobs_done=info.jobs_done,
        busy_share=_busy_share(info),
        device_time=DeviceTimeResource(**info.device_time.model_dump()),
        tallies={model: _tally(tally) for model, tally in info.tallies.items()},
    )


def _busy_share(info: WorkerInfo) -> float:
    spent = info.device_time
    total_s = spent.busy_s + spent.load_s + spent.idle_waiting_s + spent.idle_no_work_s
    return round(spent.busy_s / total_s, 4) if total_s else info.busy_share


def _tally(tally: ModelTally) -> TallyResource:
    numbers = tally.model_dump(include=set(TallyResource.model_fields))
    rows_a_batch = tally.rows / tally.batches if tally.batches else 0.0
    fill = min(1.0, rows_a_batch / tally.max_batch) if tally.max_batch else None
    return TallyResource(**numbers, batch_fill=None if fill is None else round(fill, 4))
