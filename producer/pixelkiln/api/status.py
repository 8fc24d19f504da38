"""Health, queues and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from pixelkiln.api.auth import CurrentCaller
from pixelkiln.api.metrics import TYPE, exposition
from pixelkiln.api.responses import problems
from pixelkiln.api.services import Parts
from pixelkiln.api_keys import KeyScope
from pixelkiln.resources import LaneResource, StatsResource
from pixelkiln_shared.jobs import Status

router = APIRouter(tags=["status"])


@router.get("/healthz", responses=problems())
def healthz() -> dict[str, str]:
    """Say that the process answers; nothing else is looked at."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    responses={
        **problems(),
        503: {"description": "Not ready", "content": {"application/json": {"schema": {"type": "object"}}}},
    },
)
def readyz(parts: Parts) -> JSONResponse:
    """Say whether jobs can be accepted: Redis and the storage answer. Workers are counted; none is fine."""
    state = parts.probe.state()
    return JSONResponse(state, status_code=200 if state["ready"] else 503)


@router.get("/v1/stats", response_model=StatsResource, responses=problems())
def stats(parts: Parts, caller: CurrentCaller) -> StatsResource:
    """Return the queues as they are, what they need of workers, and how many jobs are in each state."""
    outlook, target_s = parts.outlooks.fresh(), parts.settings.scale_target_s
    counts = parts.producer.ledger.counts(caller.tenant)
    return StatsResource(
        lanes=[
            LaneResource(
                lane=lane.lane,
                waiting=lane.waiting,
                running=lane.running,
                oldest_s=lane.oldest_s,
                work_s=outlook.waiting_s(lane.lane),
                servable=outlook.servable(lane.lane),
            )
            for lane in outlook.lanes.values()
        ],
        counts={status: counts.get(status, 0) for status in Status},
        workers=len(outlook.workers),
        desired_workers=outlook.desired_workers(target_s),
        safe_to_stop=outlook.safe_to_stop(target_s),
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(),
    },
)
def metrics(parts: Parts, caller: CurrentCaller) -> Response:
    """Return metrics for Prometheus; read afresh, so every API process says the same."""
    tenants = parts.gate.ring.tenants if KeyScope.ADMIN in caller.scopes else {caller.tenant}
    return Response(exposition(parts, tenants), media_type=TYPE)
