"""From a batch that ran to results that are published, whatever the store does meanwhile."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from pixelkiln_shared.errors import JobError, OutOfMemory, PixelkilnError, Unavailable
from pixelkiln_worker import delivery
from pixelkiln_worker.compute import Work, bare
from pixelkiln_worker.delivery import Arrivals, Stored
from pixelkiln_worker.device import is_out_of_memory
from pixelkiln_worker.families.contract import Outcome
from pixelkiln_worker.held import Gone, HeldJob
from pixelkiln_worker.patience import Unwanted, insist
from pixelkiln_worker.workshop import Workshop

log = structlog.get_logger(__name__)


def deliver(
    shop: Workshop, works: Sequence[Work], *, metrics: Mapping[str, float], model: Mapping[str, Any]
) -> None:
    """Encode, store and publish: the jobs side by side, each by itself.

    What the store does not take at once stays in the spool, which sees to the rest.

    Args:
        shop: where.
        works: a batch that ran.
        metrics: what is known of the batch as a whole, in milliseconds.
        model: the identity of the model that ran.
    """
    for index, work in enumerate(works):
        work.metrics |= {**metrics, "batch_size": len(works), "batch_index": index}
    common = {
        "model": model,
        "device": shop.device.name,
        "worker": shop.worker_id,
    }
    arrivals = Arrivals(len(works))
    for work in works:
        if isinstance(work.outcome, Outcome) and work.outcome.bare:
            _hand_in(shop, work, common, arrivals)  # sooner done than handed over
        else:
            shop.hands.submit(_hand_in, shop, work, common, arrivals)
    for stored in arrivals:
        _publish(shop, stored)


def fail(shop: Workshop, job: HeldJob, error: Exception) -> None:
    """End a job with an error, unless somebody else ended it meanwhile."""
    with suppress(Unwanted):
        insist(lambda: shop.held.fail(job, _as_job_error(error)), lambda: job.wanted)
        shop.telemetry.failed(job.spec.model)


def settle(shop: Workshop, job: HeldJob) -> None:
    """Settle a job that nobody sees to any more: by why it left, or, after a bug of ours, as failed."""
    if job.settled or job.gone is Gone.LOST:
        return
    try:
        if job.gone is None:
            shop.held.fail(job, PixelkilnError("the worker failed; its log says how"))
        else:
            shop.held.settle(job)
    except Unavailable:  # the heartbeat goes on settling it
        job.gone = job.gone or Gone.DRAINED
        job.at_boundary = True


def _hand_in(shop: Workshop, work: Work, common: Mapping[str, Any], arrivals: Arrivals) -> None:
    stored = None
    try:
        stored = _store(shop, work, common)
    finally:
        arrivals.put(stored)


def _store(shop: Workshop, work: Work, common: Mapping[str, Any]) -> Stored | None:
    """Encode and store what a job came to; None when there is nothing to publish, or not yet."""
    if not work.job.wanted or work.outcome is None:
        return None
    if isinstance(work.outcome, Exception):
        fail(shop, work.job, work.outcome)
        return None
    try:
        with shop.encoding:
            files = delivery.prepare(work, _facts(work, common))
        stored = shop.spool.send(work, files, partial(_late, shop))
    except Exception as error:  # noqa: BLE001 - it becomes the job's
        _not_stored(shop, work, error)
        return None
    if stored is None:
        _shelve(shop, work.job)
    return stored


def _shelve(shop: Workshop, job: HeldJob) -> None:
    """Tell the ledger that a job can kill its worker no more; until then a suspect keeps it from claiming."""
    with suppress(Unwanted, Unavailable):
        insist(lambda: shop.held.shelve(job), lambda: job.wanted)


def _late(shop: Workshop, work: Work, outcome: Stored | Exception) -> None:
    """Settle what the spool stored, or could not, when its batch had long gone."""
    try:
        if isinstance(outcome, Stored):
            _publish(shop, [outcome])
        else:
            _not_stored(shop, work, outcome)
    finally:
        settle(shop, work.job)


def _not_stored(shop: Workshop, work: Work, error: Exception) -> None:
    if not isinstance(error, Unwanted):
        log.error("a result could not be stored", job=work.job.id, exc_info=error)
        fail(shop, work.job, error)
    elif work.job.gone is Gone.CANCELED:
        delivery.discard(work.job, shop.storage)


def _publish(shop: Workshop, stored: Sequence[Stored]) -> None:
    published: list[Stored] = []
    try:
        published = delivery.publish(stored, shop.storage, shop.held)
    except Unwanted:  # newer attempts have them all
        pass
    except Exception as error:
        log.exception("results could not be published", jobs=[one.work.job.id for one in stored])
        for one in stored:
            fail(shop, one.work.job, error)
    for one in published:
        _count(shop, one)
        if isinstance(one.work.outcome, Outcome) and not shop.spool.waiting:  # a slow store has enough to do
            shop.recall.keep(one.work.job.spec.tenant, one.work.outcome.memory)


def _count(shop: Workshop, stored: Stored) -> None:
    job = stored.work.job
    shop.telemetry.done(
        job.spec.model,
        duration_s=time.monotonic() - job.claimed_at,
        upload_s=stored.work.metrics["upload_ms"] / 1_000,
        pictures=stored.pictures,
    )


def _facts(work: Work, common: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of how a result was made."""
    place = {"size": int(work.metrics["batch_size"]), "index": int(work.metrics["batch_index"])}
    return {**common, "attempt": work.job.attempt, "batch": place, **delivery.times(work)}


def _as_job_error(error: Exception) -> PixelkilnError:
    if isinstance(error, PixelkilnError):
        return error
    if is_out_of_memory(error):
        bare(error)
        return OutOfMemory("the worker's memory does not hold this job's pictures; ask for smaller or fewer")
    return JobError(f"{type(error).__name__}: {str(error)[:500]}")
