"""What `/metrics` tells Prometheus; read afresh each time, so that every API process says the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import accumulate
from typing import TypeVar, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pixelkiln.api.lane_metrics import of_outlook
from pixelkiln.api.services import Services
from pixelkiln_shared.fleet import Histogram, State, WorkerInfo
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import LaneStats
from pixelkiln_shared.ledger.leases import OVERDUE_S, LeaseCount
from pixelkiln_shared.ledger.outbox import DeliveryStatus, OutboxState

Named = TypeVar("Named", bound=StrEnum)

TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(parts: Services, tenants: Collection[str]) -> bytes:
    """Return all metrics in Prometheus's text format; states of jobs and messages are those of `tenants`.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_All(parts, tenants))
    return generate_latest(registry)


class _All(Collector):
    def __init__(self, parts: Services, tenants: Collection[str]) -> None:
        self._parts = parts
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        ledger = self._parts.producer.ledger
        yield from of_lanes(ledger.lanes())
        yield from of_outlook(self._parts.outlooks.fresh(), self._parts.settings.scale_target_s)
        yield from of_jobs(self._added_up(ledger.counts))
        yield from of_leases(self._parts.leases())
        yield from of_messages(self._added_up(self._parts.outbox.counts), self._parts.outbox.state())
        yield from of_fleet(self._parts.fleet.workers())

    def _added_up(self, counts: Callable[[str], Mapping[Named, int]]) -> Mapping[Named, int]:
        found: Counter[Named] = Counter()
        for tenant in self._tenants:
            found.update(counts(tenant))
        return found


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


def of_leases(leases: LeaseCount) -> Iterator[Metric]:
    """Yield how many jobs nobody takes back although their lease is over."""
    yield GaugeMetricFamily(
        "pixelkiln_leases_overdue",
        f"Jobs whose lease ended {OVERDUE_S:.0f} s ago or more and that nobody took back",
        value=leases.overdue,
    )


def of_messages(counts: Mapping[DeliveryStatus, int], state: OutboxState) -> Iterator[Metric]:
    """Yield how many messages to receivers are in each state, as long as they are listed, and who fails."""
    messages = GaugeMetricFamily("pixelkiln_webhooks", "Messages to receivers", labels=["status"])
    for status in DeliveryStatus:
        messages.add_metric([status], counts[status])
    receivers = GaugeMetricFamily(
        "pixelkiln_webhook_receivers", "Receivers that failed, URLs that want no more", labels=["state"]
    )
    receivers.add_metric(["failing"], state.failing)
    receivers.add_metric(["gone"], state.gone)
    late = GaugeMetricFamily(
        "pixelkiln_webhooks_late_seconds", "For how long the next message is due", value=state.late_s
    )
    yield from (messages, receivers, late)


def of_fleet(workers: Sequence[WorkerInfo]) -> Iterator[Metric]:
    """Yield what the live workers report.

    Everything that only grows is told by worker: a sum over the fleet would shrink when a worker ends, and
    Prometheus would take that for a restart from nothing.
    """
    yield from _processes(workers)
    yield from _device_seconds(workers)
    for name, (what, field) in _COUNTERS.items():
        yield _counter(workers, name, what, field)
    yield _jobs_ended(workers)
    for name, (what, field) in _HISTOGRAMS.items():
        yield _histogram(workers, name, what, field)


# What a tally holds, by the name it has here.
_COUNTERS = {
    "pixelkiln_model_loads": ("Times the model was loaded", "loads"),
    "pixelkiln_model_switches": ("Loads that made another model leave", "switches"),
    "pixelkiln_batches": ("Batches that ran", "batches"),
    "pixelkiln_batch_rows": ("Rows in those batches", "rows"),
    "pixelkiln_images": ("Pictures made", "pictures"),
    "pixelkiln_run_seconds": ("Seconds the model ran", "run_s"),
}
_HISTOGRAMS = {
    "pixelkiln_job_queue_wait_seconds": ("From submission to claim", "queue_wait"),
    "pixelkiln_job_duration_seconds": ("From claim to publication", "duration"),
    "pixelkiln_model_load_seconds": ("Loading the model", "load"),
    "pixelkiln_storage_upload_seconds": ("Storing the files of a job", "upload"),
}
_BY_MODEL = ("worker", "model")


def _processes(workers: Sequence[WorkerInfo]) -> Iterator[Metric]:
    fleet = GaugeMetricFamily("pixelkiln_workers", "Live worker processes", labels=["state"])
    states = Counter(info.state for info in workers)
    for state in get_args(State):
        fleet.add_metric([state], states[state])
    about = GaugeMetricFamily(
        "pixelkiln_worker_info", "1; what a worker is", labels=["worker", "host", "device", "version"]
    )
    memory = GaugeMetricFamily(
        "pixelkiln_worker_memory_bytes", "Device memory for models", labels=["worker", "use"]
    )
    holding = GaugeMetricFamily("pixelkiln_worker_jobs", "Jobs a worker holds", labels=["worker"])
    for info in workers:
        about.add_metric([info.id, info.host, info.device, info.version], 1)
        memory.add_metric([info.id, "budget"], info.memory_bytes)
        memory.add_metric([info.id, "resident"], sum(model.footprint_bytes for model in info.loaded))
        holding.add_metric([info.id], len(info.running))
    yield from (fleet, about, memory, holding)


def _device_seconds(workers: Sequence[WorkerInfo]) -> Iterator[Metric]:
    seconds = CounterMetricFamily(
        "pixelkiln_worker_device_seconds", "How the device spent its time", labels=["worker", "state"]
    )
    for info in workers:
        for field, spent_s in info.device_time.model_dump().items():
            seconds.add_metric([info.id, field.removesuffix("_s")], spent_s)
    yield seconds


def _counter(workers: Sequence[WorkerInfo], name: str, what: str, field: str) -> Metric:
    family = CounterMetricFamily(name, what, labels=_BY_MODEL)
    for info in workers:
        for model, tally in info.tallies.items():
            family.add_metric([info.id, model], getattr(tally, field))
    return family


def _jobs_ended(workers: Sequence[WorkerInfo]) -> Metric:
    family = CounterMetricFamily("pixelkiln_jobs_ended", "Jobs that ended", labels=[*_BY_MODEL, "status"])
    for info in workers:
        for model, tally in info.tallies.items():
            family.add_metric([info.id, model, Status.SUCCEEDED], tally.succeeded)
            family.add_metric([info.id, model, Status.FAILED], tally.failed)
    return family


def _histogram(workers: Sequence[WorkerInfo], name: str, what: str, field: str) -> Metric:
    family = HistogramMetricFamily(name, what, labels=_BY_MODEL)
    for info in workers:
        for model, tally in info.tallies.items():
            observed: Histogram | None = getattr(tally, field)
            if observed is not None and len(observed.counts) == len(observed.bounds) + 1:
                family.add_metric([info.id, model], _buckets(observed), observed.sum)
    return family


def _buckets(observed: Histogram) -> list[tuple[str, float]]:
    """Return Prometheus's buckets: cumulative, the last one without a bound."""
    edges = [*(str(bound) for bound in observed.bounds), "+Inf"]
    return list(zip(edges, accumulate(observed.counts), strict=True))
