"""The jobs this process holds: what the heartbeat renews, and what a running model asks about.

A held job is *wanted* until something ends that: a cancel, a lost lease, its run timeout, the drain of the
process. The reason decides the ledger move that settles it, once, whoever gets there first.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum

import structlog
from pydantic import ValidationError

from pixelkiln_shared.errors import JobError, LeaseLost, PixelkilnError, RunTimeout
from pixelkiln_shared.jobs import SPEC_VERSION, JobSpec, Status
from pixelkiln_shared.ledger.contract import Claimed, Ledger
from pixelkiln_worker.families.contract import Pixels

log = structlog.get_logger(__name__)


class Gone(StrEnum):
    """Why nobody wants a held job's result any more."""

    CANCELED = "canceled"
    LOST = "lost"
    TIMED_OUT = "timed_out"
    DRAINED = "drained"


@dataclass(slots=True, eq=False)
class HeldJob:
    """One claimed job, from claim to settlement.

    `started` is set when a model got it, `at_boundary` when the model let it go after a cancel. `step` of
    `steps` is what the model reached last, `reported` what the ledger knows of it, `preview` a rough picture
    that nobody has told yet: HWC, RGB, uint8. `claimed_at` is monotonic seconds.
    """

    spec: JobSpec
    attempt: int
    gone: Gone | None = None
    started: bool = False
    at_boundary: bool = False
    settled: bool = False
    step: int = 0
    steps: int = 0
    claimed_at: float = field(default_factory=time.monotonic)
    reported: tuple[int, int] = (0, 0)
    preview: Pixels | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def id(self) -> str:
        """The job's id."""
        return self.spec.id

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for this attempt's result."""
        return self.gone is None and not self.settled


class Held:
    """The register, and the moves that take a job out of it. Safe to use from every thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._jobs: dict[str, HeldJob] = {}
        self._lock = threading.Lock()
        self._empty = threading.Condition(self._lock)

    def take(self, claimed: Iterable[Claimed]) -> list[HeldJob]:
        """Enter what a claim or top-up handed over, but what we cannot read.

        A job of a later version goes back, to a lane that only workers of that version serve; one that
        nobody can read fails.

        Raises:
            RedisUnavailable: such a job could not be given back; its lease will run out.
        """
        jobs = [job for one in claimed if (job := self._read(one)) is not None]
        with self._lock:
            for job in jobs:
                earlier = self._jobs.get(job.id)
                if earlier is not None:  # we let its lease run out, and were handed it again
                    earlier.gone = Gone.LOST
                self._jobs[job.id] = job
        return jobs

    def _read(self, claimed: Claimed) -> HeldJob | None:
        try:
            spec = JobSpec.model_validate_json(claimed.spec)
            version = spec.v
        except ValidationError:
            spec, version = None, _version(claimed.spec)
        if spec is not None and version <= SPEC_VERSION:
            if claimed.group is not None:  # the record has it, not the spec
                spec = spec.model_copy(update={"group": claimed.group})
            return HeldJob(spec=spec, attempt=claimed.attempt)
        with suppress(LeaseLost):
            if version > SPEC_VERSION:
                log.info("a job of a later version is left to others", job=claimed.id, version=version)
                self._ledger.release(claimed.id, claimed.attempt, version=version)
            else:
                error = JobError("no worker can read this job", code="unsupported_version")
                self._ledger.fail(claimed.id, claimed.attempt, error_json(error))
        return None

    def jobs(self) -> list[HeldJob]:
        """Return what is held now."""
        with self._lock:
            return list(self._jobs.values())

    def pairs(self) -> list[tuple[str, int]]:
        """Return the `(id, attempt)` pairs for the heartbeat."""
        return [(job.id, job.attempt) for job in self.jobs()]

    def leave(self, ids: Iterable[str], reason: Gone) -> None:
        """Note that these jobs are not wanted any more; the first reason stays. Unknown ids are no error."""
        with self._lock:
            for name in ids:
                job = self._jobs.get(name)
                if job is not None and job.gone is None:
                    job.gone = reason
        if reason is Gone.LOST:
            self._forget([job for job in self.jobs() if job.gone is Gone.LOST])

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until nothing is held; False when that took too long."""
        with self._empty:
            return self._empty.wait_for(lambda: not self._jobs, timeout_s)

    def shelve(self, job: HeldJob) -> None:
        """Tell the ledger that a job has run and its result waits for the store, unless that is over.

        Raises:
            RedisUnavailable: it does not know; try again.
        """
        try:
            with job.lock:
                if job.wanted:
                    self._ledger.shelve(job.id, job.attempt)
        except LeaseLost:
            job.gone = Gone.LOST
            self._forget([job])

    # ------------------------------------------------------------------------------------------- settlement

    def publish(self, results: Sequence[tuple[HeldJob, str]]) -> list[bool]:
        """End several jobs with their results in one call; False for who was fenced, canceled or settled.

        Raises:
            RedisUnavailable: nothing was settled; try again.
        """
        with ExitStack() as locks:
            for job, _ in results:
                locks.enter_context(job.lock)
            ours = [(job, told) for job, told in results if not job.settled and job.gone is not Gone.LOST]
            statuses = self._ledger.publish_many([(job.id, job.attempt, told) for job, told in ours])
            done = set()
            for (job, _), status in zip(ours, statuses, strict=True):
                job.settled = True
                if status is None:
                    job.gone = Gone.LOST
                elif status is Status.SUCCEEDED:
                    done.add(job.id)
        self._forget([job for job, _ in results])
        return [job.id in done for job, _ in results]

    def fail(self, job: HeldJob, error: PixelkilnError) -> None:
        """End the job with an error.

        Raises:
            RedisUnavailable: nothing was settled; try again.
        """
        self._move(job, lambda: self._ledger.fail(job.id, job.attempt, error_json(error)))

    def settle(self, job: HeldJob) -> None:
        """Make the ledger move that fits the reason why the job is not wanted.

        Raises:
            RedisUnavailable: nothing was settled; try again.
        """
        if job.gone is Gone.CANCELED:
            self._move(job, lambda: self._ledger.stopped(job.id, job.attempt))
        elif job.gone is Gone.DRAINED:
            self._move(job, lambda: self._ledger.release(job.id, job.attempt))
        elif job.gone is Gone.TIMED_OUT:
            limit = f"{job.spec.run_timeout_s:g} s"
            self.fail(job, RunTimeout(f"it ran longer than {limit}; ask for less or raise run_timeout_s"))
        else:
            self._forget([job])

    def _move(self, job: HeldJob, move: Callable[[], Status]) -> Status | None:
        status = None
        with job.lock:
            if not job.settled and job.gone is not Gone.LOST:
                try:
                    status = move()
                except LeaseLost:
                    job.gone = Gone.LOST
                job.settled = True
        self._forget([job])
        return status

    def _forget(self, jobs: Sequence[HeldJob]) -> None:
        with self._empty:
            for job in jobs:
                if self._jobs.get(job.id) is job:
                    del self._jobs[job.id]
            self._empty.notify_all()


def _version(spec: str) -> int:
    """Return the version a job says it has, whatever else it holds; 0 when it says none."""
    try:
        version = json.loads(spec)["v"]
    except (ValueError, TypeError, KeyError):
        return 0
    return version if isinstance(version, int) else 0


def error_json(error: PixelkilnError) -> str:
    """Return an error as the ledger stores it."""
    return json.dumps({"code": error.code, "message": error.message})
