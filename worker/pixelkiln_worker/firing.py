"""The life of a batch, top to bottom: the only file that knows the whole story.

A bell calls `fire`. It waits for its turn, claims, fetches, gets the device, runs, delivers. Every job it
claimed is settled when it returns: published, failed, stopped, released, or lost to a newer attempt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.costs import Measured
from pixelkiln_shared.errors import ModelUnavailable, Unavailable
from pixelkiln_shared.ledger.contract import Claim, LaneOffer
from pixelkiln_worker import choices, inputs, outgoing
from pixelkiln_worker.boarding import Boarding
from pixelkiln_worker.compute import Work
from pixelkiln_worker.device import Poisoned
from pixelkiln_worker.families.contract import Outcome, Task
from pixelkiln_worker.held import Gone, HeldJob
from pixelkiln_worker.patience import Unwanted, insist
from pixelkiln_worker.turns import TOP_UP_S, NextSlot
from pixelkiln_worker.workshop import Workshop

log = structlog.get_logger(__name__)

LONG_FETCH_S = 1.0  # inputs that take longer let other jobs pass, which may need none


@dataclass(slots=True)
class Batch:
    """One claim on its way through the workshop; `held` for the device until `works` were run there."""

    claim: Claim
    entry: ModelEntry
    jobs: list[HeldJob]
    claimed_at: float
    boarding: Boarding = field(default_factory=Boarding)
    works: list[Work] = field(default_factory=list)
    held: bool = True
    metrics: dict[str, float] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Places taken in a forward pass."""
        return sum(job.spec.rows for job in self.jobs if job.wanted)


def fire(shop: Workshop) -> str:
    """Run one batch, if one waits; return a line for Flower."""
    shop.telemetry.heard()
    if shop.turns.must_wait:
        shop.ring_soon()  # this bell will be late: another worker may be idle
    shop.refusals.wait(shop.draining.is_set)
    with shop.turns.next_slot() as slot:
        shop.turns.await_lead(shop.draining.is_set)
        batch = _claim(shop)
        if batch is None:
            return _in_vain(shop)
        try:
            _fetch(shop, batch, slot)
            _compute(shop, batch, slot)
            _deliver(shop, batch)
        finally:
            _leave_nothing_behind(shop, batch)
            shop.ring_soon()
    return _line(batch)


# ---------------------------------------------------------------------------------------------------- claim


def _claim(shop: Workshop) -> Batch | None:
    offers = [] if shop.draining.is_set() else _offers(shop)
    batch = None
    shop.telemetry.shares.claiming()
    try:
        claim = shop.ledger.claim(shop.worker_id, offers, lease_s=shop.lease_s) if offers else None
        batch = None if claim is None else _claimed(shop, claim)
    finally:
        shop.telemetry.shares.claimed(batch is not None)
    return batch


def _claimed(shop: Workshop, claim: Claim) -> Batch:
    claimed_at = time.monotonic()
    shop.ring_soon()  # the claim may be of another lane than the bell was
    entry = shop.lanes[claim.lane]
    shop.telemetry.claimed(entry.id, [job.waited_s for job in claim.jobs])
    jobs = shop.held.take(claim.jobs)
    if not any(job.spec.deterministic for job in jobs):  # those have a batch key each
        shop.compute.sizes.claimed(claim.lane, claim.batch_key)
    return Batch(claim, entry, jobs, claimed_at)


def _in_vain(shop: Workshop) -> str:
    if shop.draining.is_set():
        shop.ring_soon()  # the bell was meant for somebody who still works
        return "draining"
    shop.hush_soon()
    return "nothing waits"


def _offers(shop: Workshop) -> list[LaneOffer]:
    house, sizes = shop.residency, shop.compute.sizes
    lanes = shop.lanes
    if not shop.turns.may_fetch:
        lanes = {lane: entry for lane, entry in lanes.items() if not inputs.wanted(lane)}
    return choices.offers(
        lanes,
        resident=house.resident,
        load_s=house.load_s,
        last_load=house.last_load,
        resting=house.resting,
        size=sizes.offer,
    )


# ---------------------------------------------------------------------------------------------------- fetch


def _fetch(shop: Workshop, batch: Batch, slot: NextSlot) -> None:
    """Bring the batch's pictures in; where that takes very long, other jobs may use the device meanwhile."""
    _start_fetching(shop, batch, batch.jobs)
    if batch.boarding.wait(LONG_FETCH_S):
        shop.turns.prepared(time.monotonic() - batch.claimed_at)
    else:
        slot.release()
        with shop.turns.long_fetch():
            batch.boarding.wait()
    batch.metrics["fetch_ms"] = _ms_since(batch.claimed_at)


def _start_fetching(shop: Workshop, batch: Batch, jobs: Sequence[HeldJob]) -> None:
    """Let each job board with its pictures; one whose picture cannot be had fails by itself."""
    batch.boarding.expect(jobs)
    for job in jobs:
        if inputs.fields(job.spec):
            shop.fetchers.submit(_fetch_one, shop, batch, job)
        else:
            _fetch_one(shop, batch, job)


def _fetch_one(shop: Workshop, batch: Batch, job: HeldJob) -> None:
    work = None
    try:
        images = insist(
            lambda: inputs.fetch(job.spec, shop.ledger, shop.storage, shop.decode),
            lambda: job.wanted,
            patience_s=shop.spool.patience_s,
        )
        task, model = Task(spec=job.spec, images=images), shop.residency.loaded(job.spec.model)
        work = Work(job, shop.recall.prepare(task, model))
    except Unwanted:
        pass
    except Exception as error:
        log.warning("an input could not be had", job=job.id, exc_info=True)
        outgoing.fail(shop, job, error)
    finally:
        batch.boarding.board(job, work)


# ------------------------------------------------------------------------------------------------------ run


def _compute(shop: Workshop, batch: Batch, slot: NextSlot) -> None:
    """Hand the batch over, fill it up as long as the device is not free for it, and wait for the end."""
    done = shop.thread.hand_over(lambda: _take_the_device(shop, batch, slot))
    try:
        _fill_up(shop, batch)
    finally:
        done.result()


def _fill_up(shop: Workshop, batch: Batch) -> None:
    """Take what came to wait since the claim: a batch that runs must be as full as it can be.

    The device waits for none of it: whoever is not ready when it takes the batch is given back.
    """
    full = shop.compute.sizes.full(batch.claim.batch_key, batch.entry.limits.max_batch)
    fetching_s = batch.metrics["fetch_ms"] / 1_000
    wait_s = shop.turns.until_last_call_s(fetching_s)
    while not batch.claim.suspect and batch.rows < full and not shop.draining.is_set():
        if batch.boarding.wait_closed(wait_s):
            return
        wait_s = shop.turns.until_last_call_s(fetching_s)
        if wait_s == 0:
            _top_up(shop, batch, full - batch.rows)
            wait_s = TOP_UP_S


def _top_up(shop: Workshop, batch: Batch, rows: int) -> None:
    try:
        more = shop.ledger.top_up(shop.worker_id, batch.claim, rows, lease_s=shop.lease_s)
        late = shop.held.take(more)
    except Unavailable:
        return
    shop.telemetry.claimed(batch.entry.id, [job.waited_s for job in more])
    batch.jobs += late
    _start_fetching(shop, batch, late)
    batch.boarding.wait()
    _give_back(shop, batch.boarding.missed())


def _give_back(shop: Workshop, jobs: Sequence[HeldJob]) -> None:
    """Give jobs back without blame; they are the first of their lane again."""
    shop.held.leave([job.id for job in jobs], Gone.DRAINED)
    for job in jobs:
        with suppress(Unavailable):  # the heartbeat goes on settling it
            shop.held.settle(job)
    if jobs:
        shop.ring_soon()


def _take_the_device(shop: Workshop, batch: Batch, slot: NextSlot) -> None:
    """Run what is ready, on the device thread: it goes from batch to batch without waking another."""
    with shop.turns.device_slot():
        slot.release()
        batch.works = batch.boarding.close()
        try:
            _run(shop, batch)
        finally:
            _let_go(shop, batch)


def _let_go(shop: Workshop, batch: Batch) -> None:
    """Note, once, that the batch waits for the device no longer."""
    if batch.held:
        batch.held = False
        shop.telemetry.shares.let_go()


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
            work.outcome = error  # told when the device is free again: that may take long
    except Poisoned:
        shop.end_poisoned([work.job for work in works if work.outcome is None])


def _run_model(shop: Workshop, batch: Batch, works: list[Work]) -> None:
    telemetry, key = shop.telemetry, batch.claim.batch_key
    with telemetry.shares.loading():
        in_use = shop.residency.use(batch.entry, waiting=telemetry.waiting)
    batch.metrics["load_ms"], batch.identity = in_use.load_ms, in_use.model.identity
    began = time.monotonic()
    make_room = partial(shop.residency.evict_others, batch.entry.id)
    with telemetry.shares.running(), shop.turns.running(key):
        shop.compute.run(in_use.model, works, key=key, make_room=make_room)
    batch.metrics["run_ms"] = _ms_since(began)
    rows, run_s = sum(work.job.spec.rows for work in works), batch.metrics["run_ms"] / 1_000
    shop.residency.ran(batch.entry.id, rows=rows, run_s=run_s)
    telemetry.batch(batch.entry.id, rows, run_s)
    telemetry.ran(batch.claim.lane, _measured(batch, works))


def _measured(batch: Batch, works: list[Work]) -> Measured:
    """What the lane's cost is learned from: a batch of which every job ran to its end; every load."""
    load_s = batch.metrics["load_ms"] / 1_000 or None
    if not all(isinstance(work.outcome, Outcome) and work.job.wanted for work in works):
        return Measured(load_s=load_s)
    work_done = sum(work.job.spec.work for work in works)
    return Measured(seconds=batch.metrics["run_ms"] / 1_000, work=work_done, batches=1, load_s=load_s)


# ------------------------------------------------------------------------------------------- deliver, settle


def _deliver(shop: Workshop, batch: Batch) -> None:
    """Encode, store and publish, while the next batch computes."""
    began = time.monotonic()
    outgoing.deliver(shop, batch.works, metrics=batch.metrics, model=batch.identity)
    batch.metrics["deliver_ms"] = _ms_since(began)


def _leave_nothing_behind(shop: Workshop, batch: Batch) -> None:
    """Settle what is left: jobs nobody wants any more, and, after a bug of ours, all the others."""
    _let_go(shop, batch)
    for job in batch.jobs:
        if not shop.spool.keeps(job):
            outgoing.settle(shop, job)


def _line(batch: Batch) -> str:
    times = " ".join(f"{name.removesuffix('_ms')}={value:.0f}ms" for name, value in batch.metrics.items())
    names = ",".join(job.id for job in batch.jobs)
    return f"{batch.claim.lane} batch={len(batch.jobs)} {times} jobs={names}"


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1_000
