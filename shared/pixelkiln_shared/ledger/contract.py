"""The legal moves of a job, as both ledgers (Redis and the in-memory twin) offer them.

Each move is atomic. Times inside are Redis `TIME`: no caller's clock is trusted. A job is always in exactly
one state; `attempt` is its fencing token: it grows with each claim, and only the newest attempt may move the
job on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.kinds import Kind

MAX_STRIKES = 3
CANCEL_CHUNK = 250  # jobs of a group canceled in one move: about 10 ms of Redis


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A job about to be written. `spec` is its `JobSpec` as JSON; the rest is what the scheduler needs.

    `work` is its size beside others of its lane (`JobSpec.work`); the ledger only adds it up. An end in one
    of the states `notify` is told to `webhook`, that of the group's last job to `group_webhook` (`outbox`).
    """

    id: str
    kind: Kind
    lane: str
    tenant: str
    spec: str
    batch_key: str
    priority: Priority = Priority.STANDARD
    rows: int = 1
    work: int = 1
    group: str | None = None
    waits_for: tuple[str, ...] = ()
    start_deadline_s: float | None = None
    retention_s: int | None = None
    notify: tuple[Status, ...] = ()
    webhook: str | None = None
    group_webhook: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Idempotency:
    """`scope` is the credential, `fingerprint` a hash of method + path + canonical body."""

    scope: str
    key: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """The answer to `submit`: the ids in order, and whether an earlier submit with the same key made them.

    `waiting` is what waited in each of the jobs' lanes right after, for the bells; empty for a replay. `at`
    is when, in Unix seconds by Redis's clock; `last_sequence` is None when not all were written just now.
    """

    ids: tuple[str, ...]
    replayed: bool = False
    waiting: Mapping[str, int] = field(default_factory=dict)
    at: float = 0.0
    last_sequence: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A job as the ledger holds it. Times are Unix seconds by Redis's clock, `result` and `error` JSON."""

    id: str
    kind: Kind
    lane: str
    tenant: str
    priority: Priority
    batch_key: str
    rows: int
    work: int
    spec: str
    status: Status
    sequence: int
    attempt: int = 0
    strikes: int = 0
    suspect: bool = False
    group: str | None = None
    waits_for: tuple[str, ...] = ()
    worker: str | None = None
    created_at: float = 0.0
    started_at: float | None = None
    completed_at: float | None = None
    step: int = 0
    steps: int = 0
    result: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneOffer:
    """A lane a worker serves: how many rows fit, whether its model is loaded, how long it may wait.

    `holds_s`, for a loaded model: while the lane's next job has waited at least so long, no overdue lane
    makes another model load. None: it never keeps one from that.
    """

    lane: str
    max_rows: int
    resident: bool = True
    max_wait_s: float = 10.0
    holds_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """One job handed to a worker. `attempt` is the fencing token for every later move.

    `waited_s` is how long it was ready to run before, by Redis's clock: since it was accepted or came back.
    """

    id: str
    attempt: int
    rows: int
    spec: str
    waited_s: float = 0.0
    group: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A batch of jobs of one lane and one batch key, leader first."""

    lane: str
    batch_key: str
    jobs: tuple[Claimed, ...]
    suspect: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Renewal:
    """What a heartbeat learned: jobs somebody asked to cancel, and jobs that are no longer ours."""

    canceling: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reaped:
    """What a sweep did, by job id; `lanes` are those with waiting jobs, with their counts (for the bells)."""

    requeued: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    canceled: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    lanes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page of a listing, newest first; `after` is the sequence to go on from, None at the end."""

    records: tuple[Record, ...]
    after: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Jobs submitted together; `counts` by status always sums to `total`."""

    id: str
    tenant: str
    total: int
    counts: Mapping[Status, int]
    created_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneStats:
    """One lane right now. `oldest_s` is the age of the job that has waited longest, 0 when none waits.

    `work` is the sum over the jobs that wait, `running_work` over those that run.
    """

    lane: str
    waiting: int
    running: int
    oldest_s: float
    work: int = 0
    running_work: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """What is served before a waiting job in its lane, about: how many jobs, and their work."""

    jobs: int
    work: int


class Bulk(Protocol):
    """Chunks submitted one behind the other, the next one prepared while the last is written."""

    def send(self, jobs: Sequence[NewJob]) -> None:
        """Begin to write a chunk: all of its jobs or none. A few may be under way at a time."""
        ...

    def answer(self) -> Submitted:
        """Wait until the oldest chunk under way is written.

        Raises:
            QueueFull, NotFound: as for `Ledger.submit`; nothing of the chunk was written.
        """
        ...


class Ledger(Protocol):
    """The moves. Every one raises `RedisUnavailable` when Redis does not answer or cannot write."""

    def submit(
        self,
        jobs: Sequence[NewJob],
        *,
        idempotency: Idempotency | None = None,
        max_waiting: int | None = None,
    ) -> Submitted:
        """Write the jobs: all or none. Thousands go in pipelined chunks (with idempotency, one chunk only).

        Raises:
            IdempotencyKeyReused: the key came before with another fingerprint.
            QueueFull: more than `max_waiting` jobs wait.
            NotFound: a job in `waits_for` does not exist or belongs to another tenant.
        """
        ...

    def bulk(self, *, max_waiting: int | None = None) -> AbstractContextManager[Bulk]:
        """Return a way to submit chunk after chunk, preparing one while the one before is written."""
        ...

    def claim(self, worker: str, offers: Sequence[LaneOffer], *, lease_s: float) -> Claim | None:
        """Take the next batch among the lanes offered, or None when nothing may be taken.

        Lane: one that waited beyond its `max_wait_s` first (longest first), then resident lanes, then the
        rest; among equals the better class, then the older job. While a resident lane holds (`LaneOffer`),
        nobody counts as overdue whose model would have to be loaded. In a lane: class (a lower one at least
        once in eight), tenant least served, oldest; then riders of the same batch key while rows fit, by
        class and turn, then by age. A suspect runs alone: only a worker that holds nothing is given one, and
        while it holds one, nothing else (`shelve` apart).
        """
        ...

    def top_up(self, worker: str, claim: Claim, max_rows: int, *, lease_s: float) -> tuple[Claimed, ...]:
        """Take more jobs of the claim's batch key, at most `max_rows` rows; never any for a suspect."""
        ...

    def renew(self, worker: str, held: Iterable[tuple[str, int]], *, lease_s: float) -> Renewal:
        """Extend the leases of `(id, attempt)` pairs in one call; the heartbeat of a process."""
        ...

    def progress(self, job_id: str, attempt: int, step: int, steps: int) -> bool:
        """Note the step reached; False when the attempt is no longer the newest. Refreshes no lease."""
        ...

    def shelve(self, job_id: str, attempt: int) -> None:
        """Note that the attempt has run, and that its result only waits for the store.

        Its worker keeps the lease, but counts as holding it no more: it may claim as if it did not, and when
        it dies this job is queued again without blame. Raises `LeaseLost` as `publish` does.
        """
        ...

    def publish(self, job_id: str, attempt: int, result: str) -> Status:
        """End the attempt with a result: `succeeded`, or `canceled` when a cancel came first.

        Raises:
            LeaseLost: a newer attempt exists, or the job has ended.
        """
        ...

    def publish_many(self, results: Sequence[tuple[str, int, str]]) -> list[Status | None]:
        """Publish `(id, attempt, result)` of several jobs in one call, each as if it were alone.

        The statuses are in the order of the results; None where `publish` would raise `LeaseLost`.
        """
        ...

    def fail(self, job_id: str, attempt: int, error: str) -> Status:
        """End the attempt with an error (JSON `{code, message}`); children waiting for it fail too.

        Raises:
            LeaseLost: as for `publish`.
        """
        ...

    def release(self, job_id: str, attempt: int, *, version: int = 1) -> Status:
        """Give the job back without blame, to the front of its queue: `queued` (or `canceled`).

        With a later `version`: to the lane of workers that read such jobs (`jobs.lane_suffix`).

        Raises:
            LeaseLost: as for `publish`.
        """
        ...

    def stopped(self, job_id: str, attempt: int) -> Status:
        """Confirm that a canceling job was stopped: `canceled`. Raises `LeaseLost` as `publish` does."""
        ...

    def cancel(self, job_id: str) -> Status:
        """Ask a job to end. Waiting or blocked: `canceled` at once; running: `canceling`; ended: its status.

        Idempotent. Also published on the cancel channel, so that a running job hears it in milliseconds.

        Raises:
            NotFound: no such job.
        """
        ...

    def retry(self, job_id: str) -> Status:
        """Put a failed, canceled or expired job back into its queue, strikes cleared.

        Raises:
            NotFound: no such job.
            AlreadyTerminal: it has succeeded, or it has not ended.
        """
        ...

    def lapse(self, worker: str) -> int:
        """End the leases of all that a dead worker holds; return how many.

        For who saw it die: the next sweep takes the jobs back at once, and judges them as after any death.
        """
        ...

    def reap(self, *, limit: int = 5_000) -> Reaped:
        """Take expired leases back and expire jobs past their start deadline.

        A job that died while its worker held others becomes a suspect, without blame; one that died alone
        gets a strike, and the third ends it as `failed`/`worker_crashed`.
        """
        ...

    def delete(self, job_id: str) -> None:
        """Forget an ended job: record, indexes, group counts stay true.

        Raises:
            NotFound: no such job.
            AlreadyTerminal: it has not ended (`code` is `not_terminal`).
        """
        ...

    def get(self, job_id: str) -> Record:
        """Return the record. Raises `NotFound`."""
        ...

    def get_many(self, ids: Sequence[str]) -> list[Record | None]:
        """Return the records in the order asked for, None for unknown ids; one round trip."""
        ...

    def jobs(
        self,
        tenant: str,
        *,
        status: Status | None = None,
        kind: Kind | None = None,
        group: str | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> Page:
        """List a tenant's jobs, newest first. Bounded work a page, whatever the number of jobs."""
        ...

    def group(self, group_id: str) -> Group:
        """Return a group's counters. Raises `NotFound`."""
        ...

    def cancel_group(self, group_id: str, *, limit: int = CANCEL_CHUNK) -> int:
        """Cancel up to `limit` unfinished jobs of a group; returns how many were touched (0: done)."""
        ...

    def position(self, job_id: str) -> int | None:
        """Return how many jobs are served before this one in its lane, about; None when it does not wait."""
        ...

    def ahead(self, job_id: str) -> Ahead | None:
        """Return what is served before this job in its lane, about; None when it does not wait.

        Of better classes the work is known; among its own a job ahead counts as the mean of the class.
        """
        ...

    def lanes(self) -> list[LaneStats]:
        """Return every lane that has waiting or running jobs."""
        ...

    def counts(self, tenant: str) -> Mapping[Status, int]:
        """Return how many jobs a tenant has in each state."""
        ...
