"""The claiming half of `MemoryLedger`: lanes, turns, batches; the rules of `lua/claim.lua`."""

from __future__ import annotations

from collections.abc import Sequence

from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import Claim, Claimed, LaneOffer
from pixelkiln_shared.ledger.scripts import RESERVATION_MS, SUSPECT_PATIENCE_MS
from pixelkiln_shared.testing.lanes import CLASSES, Job, Lane
from pixelkiln_shared.testing.records import MemoryRecords, atomic


class MemoryClaims(MemoryRecords):
    """How jobs enter and leave the lanes."""

    def _enter(self, job: Job) -> None:
        job.status = Status.QUEUED
        self._lanes.setdefault(job.new.lane, Lane(since=self._clock())).enter(job)

    def _leave(self, job: Job, *, served: int = 0) -> None:
        job.lease_until = None
        if job.status is Status.QUEUED:
            lane = self._lanes[job.new.lane]
            lane.leave(job, served=served)
            if not lane.jobs:
                del self._lanes[job.new.lane]

    def _requeue(self, job: Job) -> None:
        self._leave(job)
        job.queued_at = self._clock()
        self._enter(job)

    def _held(self, worker: str) -> list[Job]:
        return [job for job in self._jobs.values() if job.lease_until is not None and job.worker == worker]

    def _running(self, worker: str) -> list[Job]:
        """Return what a worker holds and may still be killed by."""
        return [job for job in self._held(worker) if job.shelved != job.attempt]

    @atomic
    def claim(self, worker: str, offers: Sequence[LaneOffer], *, lease_s: float) -> Claim | None:
        """Take the next batch among the lanes offered, or None when nothing may be taken."""
        held = self._running(worker)
        if any(job.suspect for job in held):
            return None
        chosen = [offer for offer in offers if offer.lane in self._lanes]
        if held and any(self._must_drain(self._lanes[offer.lane], worker) for offer in chosen):
            return None
        hold = any(map(self._holds, chosen))
        ranked = sorted(
            (rank, at)
            for at, offer in enumerate(chosen)
            if (rank := self._rank(offer, empty=not held, hold=hold))
        )
        if not ranked:
            return None
        mine = [offer for offer in chosen if not held and self._reserved(offer.lane) == worker]
        offer = mine[-1] if mine else chosen[ranked[0][1]]
        lane = self._lanes[offer.lane]
        lane.since = self._clock()
        normal = lane.best(with_suspects=False)
        alone = not held and lane.suspects() and (mine or not normal or not lane.suspect_last)
        lane.suspect_last = bool(alone)
        if alone:
            lane.reserved_by = None
            jobs = [lane.suspects()[0]]
            self._take(jobs[0], worker, lease_s)
        else:
            jobs = [lane.leader()]
            self._take(jobs[0], worker, lease_s)
            room = offer.max_rows - jobs[0].new.rows
            jobs += self._take_riders(offer.lane, jobs[0].new.batch_key, room, worker, lease_s)
        return Claim(
            lane=offer.lane,
            batch_key=jobs[0].new.batch_key,
            jobs=tuple(map(self._claimed, jobs)),
            suspect=jobs[0].suspect,
        )

    def _take_riders(self, name: str, batch_key: str, room: int, worker: str, lease_s: float) -> list[Job]:
        """Take riders by class and turn, then the oldest, while they fit."""
        lane, riders = self._lanes.get(name), list[Job]()
        if lane is None:
            return riders
        several = sum(len(turns.served) for turns in lane.turns.values()) > 1
        looks = 2 * room if several else 0
        for priority in CLASSES:
            at = 0
            while room > 0 and looks > 0:
                rider, found = lane.rider(batch_key, room, priority, at)
                if not found:
                    break
                looks -= 1
                if rider is None:
                    at += 1
                    continue
                self._take(rider, worker, lease_s)
                riders.append(rider)
                room -= rider.new.rows
        for rider in lane.riders(batch_key, room):
            self._take(rider, worker, lease_s)
            riders.append(rider)
        return riders

    def _holds(self, offer: LaneOffer) -> bool:
        """Whether the lane's next job has waited so long that no other model is loaded before it has run."""
        head = self._lanes[offer.lane].first()
        if head is None or not offer.resident or offer.holds_s is None:
            return False
        since = head.created_at if head.queued_at is None else head.queued_at
        return round(self._clock() - since, 3) >= round(offer.holds_s, 3)

    def _rank(self, offer: LaneOffer, *, empty: bool, hold: bool) -> tuple[float, bool, int, int] | None:
        """Order lanes: overdue (longest first), resident, better class, older job; smallest first."""
        lane = self._lanes[offer.lane]
        best = lane.best(with_suspects=empty)
        if best is None:
            return None
        waited = self._clock() - lane.since
        overdue = waited > offer.max_wait_s and (offer.resident or not hold)
        return (-waited if overdue else 1.0, not offer.resident, *best)

    def _reserved(self, name: str) -> str | None:
        lane = self._lanes[name]
        return lane.reserved_by if lane.suspects() and lane.reserved_until > self._clock() else None

    def _must_drain(self, lane: Lane, worker: str) -> bool:
        now, suspects = self._clock(), lane.suspects()
        if not suspects:
            return False
        if lane.reserved_by is not None and lane.reserved_until > now:
            return lane.reserved_by == worker
        if now - (suspects[0].queued_at or now) < SUSPECT_PATIENCE_MS / 1_000:
            return False
        lane.reserved_by, lane.reserved_until = worker, now + RESERVATION_MS / 1_000
        return True

    def _take(self, job: Job, worker: str, lease_s: float) -> None:
        self._leave(job, served=job.new.rows)
        now = self._clock()
        job.status, job.worker, job.started_at = Status.RUNNING, worker, now
        job.attempt += 1
        job.lease_until = now + lease_s
        job.step = job.steps = 0
        job.deadline = None

    @atomic
    def top_up(self, worker: str, claim: Claim, max_rows: int, *, lease_s: float) -> tuple[Claimed, ...]:
        """Take more jobs of the claim's batch key, at most `max_rows` further rows; none for a suspect."""
        if claim.suspect or any(job.suspect for job in self._running(worker)):
            return ()
        riders = self._take_riders(claim.lane, claim.batch_key, max_rows, worker, lease_s)
        return tuple(map(self._claimed, riders))

    def _claimed(self, job: Job) -> Claimed:
        waited_s = round(self._clock() - (job.queued_at or job.created_at), 3)
        new = job.new
        return Claimed(
            id=new.id,
            attempt=job.attempt,
            rows=new.rows,
            spec=new.spec,
            waited_s=waited_s,
            group=new.group,
        )
