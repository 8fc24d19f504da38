"""Health, workers, queues and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pixelkiln.api.auth import CurrentCaller
from pixelkiln.api.lane_metrics import of_outlook
from pixelkiln.api.responses import problems
from pixelkiln.api.services import Parts, Services
from pixelkiln.resources import LaneResource, LoadedResource, StatsResource, WorkerList, WorkerResource
from pixelkiln_shared.jobs import Status

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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
    """Say whether jobs can be accepted: Redis and the storage answer. Workers are not required: jobs wait."""
    state = parts.probe.state()
    return JSONResponse(state, status_code=200 if state["ready"] else 503)


@router.get("/v1/workers", response_model=WorkerList, responses=problems())
def workers(parts: Parts, caller: CurrentCaller) -> WorkerList:
    """List the live worker processes."""
    return WorkerList(
        data=[
            WorkerResource(
                id=info.id,
                host=info.host,
                device=info.device,
                state=info.state,
                models=list(info.models),
                resident=list(info.resident),
                loaded=[LoadedResource(**one.model_dump()) for one in info.loaded],
                unavailable=info.unavailable,
                memory_bytes=info.memory_bytes,
                running=list(info.running),
                started_at=info.started_at,
                jobs_done=info.jobs_done,
            )
            for info in parts.fleet.workers()
        ]
    )


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
    """Return gauges for Prometheus; read afresh, so every API process says the same."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gauges(parts, caller.tenant))
    return Response(generate_latest(registry), media_type=METRICS_TYPE)


class _Gauges(Collector):
    def __init__(self, parts: Services, tenant: str) -> None:
        self._parts = parts
        self._tenant = tenant

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the families; see `metrics`."""
        waiting = GaugeMetricFamily("pixelkiln_queue_waiting", "Jobs that wait", labels=["lane"])
        running = GaugeMetricFamily("pixelkiln_queue_running", "Jobs that run", labels=["lane"])
        oldest = GaugeMetricFamily(
            "pixelkiln_queue_oldest_seconds", "Age of the job that has waited longest", labels=["lane"]
        )
        for lane in self._parts.producer.ledger.lanes():
            waiting.add_metric([lane.lane], lane.waiting)
            running.add_metric([lane.lane], lane.running)
            oldest.add_metric([lane.lane], lane.oldest_s)
        yield from (waiting, running, oldest)
        yield from of_outlook(self._parts.outlooks.fresh(), self._parts.settings.scale_target_s)
        jobs = GaugeMetricFamily("pixelkiln_jobs", "Jobs in each state", labels=["status"])
        counts = self._parts.producer.ledger.counts(self._tenant)
        for status in Status:
            jobs.add_metric([status], counts.get(status, 0))
        yield jobs
        fleet = GaugeMetricFamily("pixelkiln_workers", "Live worker processes", labels=["state"])
        states = Counter(info.state for info in self._parts.fleet.workers())
        for state in ("starting", "ready", "draining"):
            fleet.add_metric([state], states[state])
        yield fleet
