"""What Prometheus reads of the fleet, from reports made by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from pixelkiln.api.metrics import of_fleet
from pixelkiln_shared.fleet import DeviceTime, Histogram, LoadedModel, ModelTally, WorkerInfo

WAITS = Histogram(bounds=(0.1, 1.0), counts=(2, 3, 1), sum=7.5)


def worker(name: str, **more: Any) -> WorkerInfo:
    facts = {"host": "h", "pid": 1, "device": "cpu", "state": "ready", "version": "0"}
    return WorkerInfo(**{"id": name, **facts, "started_at": datetime.now(UTC), **more})


def read(*workers: WorkerInfo) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples as Prometheus parses them, by name and labels."""

    class Fixed(Collector):
        def collect(self) -> Any:
            return of_fleet(workers)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Fixed())
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


def value(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def test_the_time_of_a_device_is_told_by_what_it_did() -> None:
    spent = DeviceTime(busy_s=8, load_s=1, idle_waiting_s=0.5, idle_no_work_s=2)
    found = read(worker("w1", device_time=spent))
    seconds = {
        state: value(found, "pixelkiln_worker_device_seconds_total", worker="w1", state=state)
        for state in ("busy", "load", "idle_waiting", "idle_no_work")
    }
    assert seconds == {"busy": 8, "load": 1, "idle_waiting": 0.5, "idle_no_work": 2}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("pixelkiln_model_loads_total", "loads"),
        ("pixelkiln_model_switches_total", "switches"),
        ("pixelkiln_batches_total", "batches"),
        ("pixelkiln_batch_rows_total", "rows"),
        ("pixelkiln_images_total", "pictures"),
        ("pixelkiln_run_seconds_total", "run_s"),
    ],
)
def test_what_was_done_is_counted_by_worker_and_model(name: str, field: str) -> None:
    found = read(
        worker("w1", tallies={"m": ModelTally(**{field: 5}), "n": ModelTally(**{field: 2})}),
        worker("w2", tallies={"m": ModelTally(**{field: 3})}),
    )
    assert value(found, name, worker="w1", model="m") == 5
    assert value(found, name, worker="w1", model="n") == 2
    assert value(found, name, worker="w2", model="m") == 3


def test_jobs_that_ended_are_counted_by_how() -> None:
    found = read(worker("w1", tallies={"m": ModelTally(succeeded=4, failed=1)}))
    name = "pixelkiln_jobs_ended_total"
    assert value(found, name, worker="w1", model="m", status="succeeded") == 4
    assert value(found, name, worker="w1", model="m", status="failed") == 1


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("pixelkiln_job_queue_wait_seconds", "queue_wait"),
        ("pixelkiln_job_duration_seconds", "duration"),
        ("pixelkiln_model_load_seconds", "load"),
        ("pixelkiln_storage_upload_seconds", "upload"),
    ],
)
def test_times_are_histograms_whose_buckets_add_up(name: str, field: str) -> None:
    found = read(worker("w1", tallies={"m": ModelTally(**{field: WAITS})}))
    where = {"worker": "w1", "model": "m"}
    buckets = [value(found, f"{name}_bucket", **where, le=le) for le in ("0.1", "1.0", "+Inf")]
    assert buckets == [2, 5, 6]
    assert value(found, f"{name}_count", **where) == 6
    assert value(found, f"{name}_sum", **where) == 7.5


def test_a_broken_histogram_hides_itself_and_nothing_else() -> None:
    broken = Histogram(bounds=(0.1, 1.0), counts=(2,))
    found = read(worker("w1", tallies={"m": ModelTally(queue_wait=broken, loads=1)}))
    assert not [name for name, _ in found if name.startswith("pixelkiln_job_queue_wait")]
    assert value(found, "pixelkiln_model_loads_total", worker="w1", model="m") == 1


def test_memory_is_told_beside_its_budget() -> None:
    loaded = tuple(LoadedModel(id=name, footprint_bytes=300, load_s=1) for name in "ab")
    found = read(worker("w1", memory_bytes=1_000, loaded=loaded, running=("j1", "j2")))
    assert value(found, "pixelkiln_worker_memory_bytes", worker="w1", use="budget") == 1_000
    assert value(found, "pixelkiln_worker_memory_bytes", worker="w1", use="resident") == 600
    assert value(found, "pixelkiln_worker_jobs", worker="w1") == 2


def test_a_worker_that_tells_little_is_still_there() -> None:
    found = read(worker("w1", state="starting"))
    assert value(found, "pixelkiln_workers", state="starting") == 1
    assert value(found, "pixelkiln_workers", state="ready") == 0
    assert not [name for name, _ in found if name.endswith("_bucket")]
