"""The waiting jobs of one lane, for `MemoryLedger`: the rules of `lua/queue.lua` and `lua/claim.lua`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.ledger.contract import Ahead, NewJob

CLASSES = tuple(Priority)


@dataclass(slots=True)
class Job:
    """A job and all that happened to it; `new` never changes. Times are Unix seconds."""

    new: NewJob
    sequence: int
    created_at: float
    status: Status = Status.QUEUED
    attempt: int = 0
    strikes: int = 0
    suspect: bool = False
    company: int = 0  # the attempt in which its worker lost another job
    shelved: int = 0  # the attempt that has run, and whose result waits for the store
    worker: str | None = None
    lease_until: float | None = None  # while a worker holds it
    queued_at: float | None = None
    started_at: float | None = None
    completed_at: float | None = None
    step: int = 0
    steps: int = 0
    pending: set[str] = field(default_factory=set)
    deadline: float | None = None
    outcome: str | None = None
    dead: bool = False
    restored_at: float | None = None
    expires_at: float | None = None  # of a restored job that does not live a full retention


@dataclass(slots=True)
class Turns:
    """Fair queueing within one class: rows served to each active tenant, on a common virtual clock."""

    clock: float = 0.0
    served: dict[str, float] = field(default_factory=dict)
    debts: dict[str, float] = field(default_factory=dict)

    def enter(self, tenant: str) -> None:
        """Make the tenant active, at the current time or where its debt ends."""
        if tenant not in self.served:
            self.served[tenant] = max(self.clock, self.debts.pop(tenant, 0.0))

    def leave(self, tenant: str) -> None:
        """Remember what an inactive tenant was served beyond the current time."""
        score = self.served.pop(tenant)
        if score > self.clock:
            self.debts[tenant] = score

    def ranked(self) -> list[str]:
        """Return the active tenants, those served least first."""
        return sorted(self.served, key=lambda name: (self.served[name], name))

    def next(self) -> str:
        """Return the tenant served least and move the clock to it."""
        tenant = self.ranked()[0]
        self.clock = self.served[tenant]
        self.debts = {name: score for name, score in self.debts.items() if score > self.clock}
        return tenant


@dataclass(slots=True)
class Lane:
    """A lane with at least one waiting job; it is forgotten with its last one."""

    since: float
    jobs: list[Job] = field(default_factory=list)
    turns: dict[Priority, Turns] = field(default_factory=dict)
    passed: dict[Priority, int] = field(default_factory=dict)
    suspect_last: bool = False
    reserved_by: str | None = None
    reserved_until: float = 0.0

    def enter(self, job: Job) -> None:
        """Add a waiting job, in order of sequence."""
        self.jobs.append(job)
        self.jobs.sort(key=lambda one: one.sequence)
        if not job.suspect:
            self.turns.setdefault(job.new.priority, Turns()).enter(job.new.tenant)

    def leave(self, job: Job, *, served: int) -> None:
        """Remove a waiting job and charge its tenant for the rows served."""
        self.jobs.remove(job)
        if job.suspect:
            return
        turns, tenant = self.turns[job.new.priority], job.new.tenant
        turns.served[tenant] += served
        if not self.of_class(job.new.priority):
            del self.turns[job.new.priority]
            self.passed.pop(job.new.priority, None)
        elif not self.of_tenant(job):
            turns.leave(tenant)

    def suspects(self) -> list[Job]:
        """Return the waiting suspects, oldest first."""
        return [job for job in self.jobs if job.suspect]

    def of_class(self, priority: Priority) -> list[Job]:
        """Return the waiting jobs of a class that are no suspects, oldest first."""
        return [job for job in self.jobs if not job.suspect and job.new.priority is priority]

    def of_tenant(self, like: Job) -> list[Job]:
        """Return the waiting jobs of the same class and tenant, oldest first."""
        return [job for job in self.of_class(like.new.priority) if job.new.tenant == like.new.tenant]

    def heads(self) -> list[Job]:
        """Return the first job of each class and of the suspects."""
        waiting = [*map(self.of_class, CLASSES), self.suspects()]
        return [jobs[0] for jobs in waiting if jobs]

    def first(self) -> Job | None:
        """Return the oldest job of the best class that waits, suspects aside."""
        return next((waiting[0] for priority in CLASSES if (waiting := self.of_class(priority))), None)

    def best(self, *, with_suspects: bool) -> tuple[int, int] | None:
        """Return place and sequence of the best possible leader; suspects are the last place."""
        for place, priority in enumerate(CLASSES):
            if waiting := self.of_class(priority):
                return place, waiting[0].sequence
        if with_suspects and (suspects := self.suspects()):
            return len(CLASSES), suspects[0].sequence
        return None

    def choose_class(self) -> Priority:
        """Pick the class to serve: the best, unless a lower one has been passed over often enough."""
        waiting = [priority for priority in CLASSES if self.of_class(priority)]
        choice = waiting[0]
        if Priority.BULK in waiting and self.passed.get(Priority.BULK, 0) >= 7:
            choice = Priority.BULK
        elif Priority.STANDARD in waiting and self.passed.get(Priority.STANDARD, 0) >= 6:
            choice = Priority.STANDARD
        for priority in (Priority.STANDARD, Priority.BULK):
            if priority is choice:
                self.passed.pop(priority, None)
            elif priority in waiting:
                self.passed[priority] = self.passed.get(priority, 0) + 1
        return choice

    def leader(self) -> Job:
        """Return the oldest job of the least served tenant of the class whose turn it is."""
        priority = self.choose_class()
        tenant = self.turns[priority].next()
        return next(job for job in self.of_class(priority) if job.new.tenant == tenant)

    def rider(self, batch_key: str, room: int, priority: Priority, at: int) -> tuple[Job | None, bool]:
        """Return the first job of the tenant at place `at` of a class if it may ride; and if there is one."""
        turns = self.turns.get(priority)
        if turns is None or at >= len(turns.served):
            return None, False
        tenant = turns.ranked()[at]
        job = next(job for job in self.of_class(priority) if job.new.tenant == tenant)
        return (job if job.new.batch_key == batch_key and job.new.rows <= room else None), True

    def riders(self, batch_key: str, room: int) -> list[Job]:
        """Return waiting jobs of a batch key, oldest first, as far as they fit into `room` rows."""
        alike = [job for job in self.jobs if not job.suspect and job.new.batch_key == batch_key]
        riders = []
        for job in alike[: max(0, 2 * room)]:
            if job.new.rows <= room:
                riders.append(job)
                room -= job.new.rows
        return riders

    def ahead_of(self, job: Job) -> Ahead:
        """Estimate what is served before this job."""
        if job.suspect:
            suspects = self.suspects()
            place = suspects.index(job)
            return Ahead(jobs=place, work=_share(suspects, place))
        before = work = 0
        for priority in CLASSES:
            peers = self.of_class(priority)
            if priority is job.new.priority:
                mine, ranked = self.of_tenant(job), self.turns[priority].ranked()
                rounds = mine.index(job) * len(ranked) + ranked.index(job.new.tenant)
                behind = len(mine) - mine.index(job) - 1
                ahead = min(rounds, len(peers) - 1 - behind)
                return Ahead(jobs=before + ahead, work=work + _share(peers, ahead))
            before += len(peers)
            work += work_of(peers)
        raise AssertionError("a waiting job has a class")


def work_of(jobs: Iterable[Job]) -> int:
    """Return the work of several jobs."""
    return sum(job.new.work for job in jobs)


def _share(peers: list[Job], ahead: int) -> int:
    """Return the work of so many of these jobs, each taken as their mean."""
    return work_of(peers) * ahead // len(peers)
