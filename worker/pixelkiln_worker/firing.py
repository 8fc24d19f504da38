"""The life of a batch, top to bottom: the only file that knows the whole story.

A bell calls `fire`. It waits for its turn, claims, fetches, gets the device, runs, delivers. Every job it
claimed is settled when it returns: published, failed, stopped, released, or lost to a newer attempt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.costs import Measured
from pixelkiln_shared.errors import JobError, ModelUnavailable, PixelkilnError, Unavailable
from pixelkiln_shared.ledger.contract import Claim, LaneOffer, Ledger
from pixelkiln_shared.storage.contract import Storage
from pixelkiln_worker import delivery, inputs
from pixelkiln_worker.compute import Compute, Work
from pixelkiln_worker.device import Device, DeviceThread, Poisoned
from pixelkiln_worker.families.contract import Outcome, Task
from pixelkiln_worker.held import Gone, Held, HeldJob
from pixelkiln_worker.patience import Unwanted, insist
from pixelkiln_worker.recall import Recall
from pixelkiln_worker.residency import Residency
from pixelkiln_worker.telemetry import Telemetry
from pixelkiln_worker.turns import NextSlot, Turns

log = structlog.get_logger(__name__)

SHORTEST_MAX_WAIT_S = 10.0  # a lane whose model is not loaded is passed over at least so long
LOADS_PER_MAX_WAIT = 4  # then the loading costs at most a fifth of the time


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """What the firings of one process share.

    Attributes:
        lanes: what this worker serves, by lane.
        recall: what models worked out about pictures before.
        hands: threads for transfers, so that a batch's pictures travel side by side.
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
    recall: Recall
    device: Device
    thread: DeviceThread
    residency: Residency
    compute: Compute
    turns: Turns
    held: Held
    telemetry: Telemetry
    hands: Executor
    encoding: threading.Semaphore
    decode: inputs.Decode
    ring_soon: Callable[[], None]
    hush_soon: Callable[[], None]
    draining: threading.Event
    end_poisoned: Callable[[Sequence[HeldJob]], None]


@dataclass(slots=True)
class Batch:
    """One claim on its way through the workshop."""

    claim: Claim
    entry: ModelEntry
    jobs: list[HeldJob]
    claimed_at: float
    works: list[Work] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Places taken in a forward pass."""
        return sum(job.spec.rows for job in self.jobs)


def fire(shop: Workshop) -> str:
    """Run one batch, if one waits; return a line for Flower."""
    shop.telemetry.heard()
    if shop.turns.must_wait:
        shop.ring_soon()  # this bell will be late: another worker may be idle
    with shop.turns.next_slot() as slot:
        shop.turns.await_lead(shop.draining.is_set)
        batch = _claim(shop)
        if batch is None:
            return _in_vain(shop)
        try:
            _fetch(shop, batch, batch.jobs)
            shop.turns.prepared(time.monotonic() - batch.claimed_at)
            shop.thread.run(lambda: _take_the_device(shop, batch, slot))
            _deliver(shop, batch)
        finally:
            _leave_nothing_behind(shop, batch)
            shop.ring_soon()
    return _line(batch)


# ---------------------------------------------------------------------------------------------------- claim


def _claim(shop: Workshop) -> Batch | None:
    offers = [] if shop.draining.is_set() else _offers(shop)
    claim = shop.ledger.claim(shop.worker_id, offers, lease_s=shop.lease_s) if offers else None
    if claim is None:
        return None
    claimed_at = time.monotonic()
    shop.ring_soon()  # the claim may be of another lane than the bell was
    return Batch(claim, shop.lanes[claim.lane], shop.held.take(claim.jobs), claimed_at)


def _in_vain(shop: Workshop) -> str:
    if shop.draining.is_set():
        shop.ring_soon()  # the bell was meant for somebody who still works
        return "draining"
    shop.hush_soon()
    return "nothing waits"


def _offers(shop: Workshop) -> list[LaneOffer]:
    resident = shop.residency.resident
    return [
        LaneOffer(
            lane=lane,
            max_rows=entry.limits.max_batch,
            resident=entry.id in resident,
            max_wait_s=max(SHORTEST_MAX_WAIT_S, LOADS_PER_MAX_WAIT * shop.residency.load_s(entry.id)),
        )
        for lane, entry in shop.lanes.items()
        if not shop.residency.resting(entry.id)
    ]


def _top_up(shop: Workshop, batch: Batch) -> None:
    """Take what came to wait since the claim; a batch that runs must be as full as it can be."""
    room = batch.entry.limits.max_batch - batch.rows
    if room <= 0 or batch.claim.suspect or shop.draining.is_set():
        return
    try:
        more = shop.ledger.top_up(shop.worker_id, batch.claim, room, lease_s=shop.lease_s)
    except Unavailable:
        return
    if more:
        jobs = shop.held.take(more)
        batch.jobs += jobs
        _fetch(shop, batch, jobs, on_device=True)


# ---------------------------------------------------------------------------------------------------- fetch


def _fetch(shop: Workshop, batch: Batch, jobs: Sequence[HeldJob], *, on_device: bool = False) -> None:
    """Bring the jobs' pictures in, side by side; a job whose picture cannot be had fails by itself.

    What is kept of the pictures comes with them, but not while the device waits: it may be slower than anew.
    """
    began = time.monotonic()
    # jobs of one lane all take a picture, or none of them does; then there is nothing to wait for
    over = shop.hands.map if any(inputs.fields(job.spec) for job in jobs) else map
    fetch_one = partial(_fetch_one, shop, not on_device)
    batch.works += [work for work in over(fetch_one, jobs) if work is not None]
    batch.metrics["fetch_ms"] = batch.metrics.get("fetch_ms", 0.0) + _ms_since(began)


def _fetch_one(shop: Workshop, recalling: bool, job: HeldJob) -> Work | None:
    try:
        images = insist(
            lambda: inputs.fetch(job.spec, shop.ledger, shop.storage, shop.decode), lambda: job.wanted
        )
    except Unwanted:
        return None
    except Exception as error:
        log.warning("an input could not be had", job=job.id, exc_info=True)
        _fail(shop, job, _as_job_error(error))
        return None
    task, model = Task(spec=job.spec, images=images), shop.residency.loaded(job.spec.model)
    return Work(job, shop.recall.prepare(task, model, reading=recalling))


# ------------------------------------------------------------------------------------------------------ run


def _take_the_device(shop: Workshop, batch: Batch, slot: NextSlot) -> None:
    """Top up and run, all on the device thread: it goes from batch to batch without waking another."""
    with shop.turns.device_slot():
        slot.release()
        _top_up(shop, batch)
        _run(shop, batch)


def _run(shop: Workshop, batch: Batch) -> None:
    if shop.draining.is_set():
        shop.held.leave([job.id for job in batch.jobs], Gone.DRAINED)
    works = [work for work in batch.works if work.job.wanted]
    if not works:
        return
    batch.metrics["wait_ms"] = _ms_since(batch.claimed_at)
    try:
        _run_model(shop, batch, works)
    except ModelUnavailable as error:
        for work in works:
            _fail(shop, work.job, error)
    except Poisoned:
        shop.end_poisoned([work.job for work in works if work.outcome is None])
    shop.telemetry.batch(batch.rows)


def _run_model(shop: Workshop, batch: Batch, works: list[Work]) -> None:
    in_use = shop.residency.use(batch.entry)
    batch.metrics["load_ms"], batch.identity = in_use.load_ms, in_use.model.identity
    began = time.monotonic()
    key = batch.claim.batch_key
    make_room = partial(shop.residency.evict_others, batch.entry.id)
    with shop.turns.running(key):
        shop.compute.run(in_use.model, works, key=key, make_room=make_room)
    batch.metrics["run_ms"] = _ms_since(began)
    shop.telemetry.ran(batch.claim.lane, _measured(batch, works))


def _measured(batch: Batch, works: list[Work]) -> Measured:
    """What the lane's cost is learned from: a batch of which every job ran to its end; every load."""
    load_s = batch.metrics["load_ms"] / 1_000 or None
    if not all(isinstance(work.outcome, Outcome) for work in works):
        return Measured(load_s=load_s)
    work_done = sum(work.job.spec.work for work in works)
    return Measured(seconds=batch.metrics["run_ms"] / 1_000, work=work_done, batches=1, load_s=load_s)


# -------------------------------------------------------------------------------------------------- deliver


def _deliver(shop: Workshop, batch: Batch) -> None:
    """Encode, store and publish, while the next batch computes: the jobs side by side, each by itself."""
    began = time.monotonic()
    for index, work in enumerate(batch.works):
        work.metrics |= {**batch.metrics, "batch_size": len(batch.works), "batch_index": index}
    list(shop.hands.map(partial(_deliver_one, shop, batch), batch.works))
    batch.metrics["deliver_ms"] = _ms_since(began)


def _deliver_one(shop: Workshop, batch: Batch, work: Work) -> None:
    if not work.job.wanted or work.outcome is None:
        return
    if isinstance(work.outcome, Exception):
        _fail(shop, work.job, _as_job_error(work.outcome))
        return
    try:
        with shop.encoding:
            files = delivery.prepare(work, _facts(shop, batch, work))
        if delivery.send(work, files, shop.storage, shop.held):
            shop.telemetry.done()
            shop.recall.keep(work.job.spec.tenant, work.outcome.memory)
    except Unwanted:
        if work.job.gone is Gone.CANCELED:
            delivery.discard(work.job, shop.storage)
    except Exception as error:
        log.exception("a result could not be delivered", job=work.job.id)
        _fail(shop, work.job, _as_job_error(error))


def _facts(shop: Workshop, batch: Batch, work: Work) -> dict[str, Any]:
    """What the manifest says of how a result was made."""
    return {
        "model": batch.identity,
        "device": shop.device.name,
        "worker": shop.worker_id,
        "attempt": work.job.attempt,
        "batch": {"size": len(batch.works), "index": int(work.metrics["batch_index"])},
        "timings_ms": {name: round(value, 3) for name, value in batch.metrics.items()},
    }


# --------------------------------------------------------------------------------------------------- settle


def _fail(shop: Workshop, job: HeldJob, error: PixelkilnError) -> None:
    """End a job with an error, unless somebody else ended it meanwhile."""
    with suppress(Unwanted):
        insist(lambda: shop.held.fail(job, error), lambda: job.wanted)
        shop.telemetry.failed()


def _as_job_error(error: Exception) -> PixelkilnError:
    if isinstance(error, PixelkilnError):
        return error
    return JobError(f"{type(error).__name__}: {str(error)[:500]}")


def _leave_nothing_behind(shop: Workshop, batch: Batch) -> None:
    """Settle what is left: jobs nobody wants any more, and, after a bug of ours, all the others."""
    for job in batch.jobs:
        if job.settled or job.gone is Gone.LOST:
            continue
        try:
            if job.gone is None:
                shop.held.fail(job, PixelkilnError("the worker failed; its log says how"))
            else:
                shop.held.settle(job)
        except Unavailable:  # the heartbeat goes on settling it
            job.gone = job.gone or Gone.DRAINED
            job.at_boundary = True


def _line(batch: Batch) -> str:
    times = " ".join(f"{name.removesuffix('_ms')}={value:.0f}ms" for name, value in batch.metrics.items())
    names = ",".join(job.id for job in batch.jobs)
    return f"{batch.claim.lane} batch={len(batch.jobs)} {times} jobs={names}"


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1_000
