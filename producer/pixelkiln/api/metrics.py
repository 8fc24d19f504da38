"""What `/metrics` tells Prometheus; read afresh each time, so that every API process says the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pixelkiln.api.lane_metrics import of_outlook
from pixelkiln.api.services import Services
from pixelkiln_shared.fleet import WorkerInfo
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import LaneStats

TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(parts: Services, tenant: str) -> bytes:
    """Return all metrics in Prometheus's text format; states of jobs are those of `tenant`.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_All(parts, tenant))
    return generate_latest(registry)


class _All(Collector):
    def __init__(self, parts: Services, tenant: str) -> None:
        self._parts = parts
        self._tenant = tenant

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        ledger = self._parts.producer.ledger
        yield from of_lanes(ledger.lanes())
        yield from of_outlook(self._parts.outlooks.fresh(), self._parts.settings.scale_target_s)
        yield from of_jobs(ledger.counts(self._tenant))
        yield from of_fleet(self._parts.fleet.workers())


def of_lanes(lanes: Iterable[LaneStats]) -> Iterator[Metric]:
    """Yield what waits and what runs, by lane."""
    waiting = GaugeMetricFamily("pixelkiln_queue_waiting", "Jobs that wait", labels=["lane"])
    running = GaugeMetricFamily("pixelkiln_queue_running", "Jobs that run", labels=["lane"])
    oldest = GaugeMetricFamily(
        "pixelkiln_queue_oldest_seconds", "Age of the job that has waited longest", labels=["lane"]
    )
    for lane in lanes:
        waiting.add_metric([lane.lane], lane.waiting)
        running.add_metric([lane.lane], lane.running)
        oldest.add_metric([lane.lane], lane.oldest_s)
    yield from (waiting, running, oldest)


def of_jobs(counts: Mapping[Status, int]) -> Iterator[Metric]:
    """Yield how many jobs are in each state."""
    jobs = GaugeMetricFamily("pixelkiln_jobs", "Jobs in each state", labels=["status"])
    for status in Status:
        jobs.add_metric([status], counts.get(status, 0))
    yield jobs


def of_fleet(workers: Iterable[WorkerInfo]) -> Iterator[Metric]:
    """Yield the live worker processes by state."""
    fleet = GaugeMetricFamily("pixelkiln_workers", "Live worker processes", labels=["state"])
    states = Counter(info.state for info in workers)
    for state in ("starting", "ready", "draining"):
        fleet.add_metric([state], states[state])
    yield fleet
