"""Both ledgers side by side under a random history, crashes included.

After every step: no job lost, never two results, nothing moved by an attempt that lost its lease, counters
equal to what they count, and the twin says exactly what Redis says. At the end all that waits can be served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pixelkiln_shared.errors import LeaseLost, PixelkilnError
from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.ledger.contract import Claim, Claimed, LaneOffer, Ledger, NewJob, Reaped, Record
from tests.ledger_worlds import LEASE_S, RETENTION_S, World, memory_world, new_job, redis_world

LANES = ("generate.a", "generate.b")
WORKERS = ("w1", "w2", "w3")
TENANTS = ("anna", "bert")
GROUPS = ("ga", "gb")
HELD = (Status.RUNNING, Status.CANCELING)

workers = st.sampled_from(WORKERS)
picks = st.integers(0, 10_000)


class Ledgers(RuleBasedStateMachine):
    """Rules call `both`, which does the same to the twin and to Redis and compares what comes back."""

    redis_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.worlds: list[World] = []
        self.known: list[str] = []
        self.attempts: list[tuple[str, int]] = []
        self.claims: list[tuple[str, Claim]] = []
        self.results: dict[str, str] = {}
        self.seen: dict[str, Record] = {}
        self.ran: set[tuple[str, int]] = set()

    @initialize()
    def open(self) -> None:
        over_redis = self.stack.enter_context(redis_world(self.redis_url))
        over_redis.ledger._client.flushdb()  # type: ignore[union-attr]
        over_redis.clock.advance(0)
        self.worlds = [memory_world(), over_redis]

    def teardown(self) -> None:
        try:
            if self.worlds:
                self.everything_can_be_served()
        finally:
            self.stack.close()

    def both(self, move: Callable[[Any], Any]) -> Any:
        """Do the same to both ledgers; they answer alike or refuse alike."""
        answers = []
        for world in self.worlds:
            try:
                answers.append(plain(move(world.ledger)))
            except (PixelkilnError, LeaseLost) as error:
                answers.append((type(error), getattr(error, "code", "")))
        assert answers[0] == answers[1]
        return answers[0]

    @property
    def ledger(self) -> Any:
        return self.worlds[0].ledger

    # ------------------------------------------------------------------------------------ rules

    @rule(
        count=st.integers(1, 4),
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from(Priority),
        lane=st.sampled_from(LANES),
        batch_key=st.sampled_from(["k", "l"]),
        rows=st.integers(1, 3),
        work=st.integers(1, 2_000),
        grouped=st.booleans(),
        deadline_s=st.sampled_from([None, None, None, 5.0]),
        parents=st.lists(picks, max_size=2),
    )
    def submit(
        self, count: int, parents: list[int], grouped: bool, deadline_s: float | None, **fields: Any
    ) -> None:
        alive = [
            job for job in self.known if self.seen.get(job) and self.seen[job].tenant == fields["tenant"]
        ]
        chosen = tuple(alive[pick % len(alive)] for pick in parents) if alive else ()
        group = GROUPS[TENANTS.index(fields["tenant"])] if grouped else None
        jobs: list[NewJob] = [
            new_job(waits_for=chosen, group=group, start_deadline_s=deadline_s, **fields)
            for _ in range(count)
        ]
        self.both(lambda ledger: ledger.submit(jobs))
        self.known += [job.id for job in jobs]

    @rule(worker=workers, max_rows=st.integers(1, 6), resident=st.booleans(), lanes=st.sampled_from([1, 2]))
    def claim(self, worker: str, max_rows: int, resident: bool, lanes: int) -> None:
        held = [record for record in self.seen.values() if record.worker == worker and record.status in HELD]
        held = [record for record in held if (record.id, record.attempt) not in self.ran]
        offers = [LaneOffer(lane=LANES[0], max_rows=max_rows, resident=resident)]
        offers += [LaneOffer(lane=LANES[1], max_rows=max_rows, max_wait_s=3)] * (lanes - 1)
        claim = self.both(lambda ledger: ledger.claim(worker, offers, lease_s=LEASE_S))
        if claim is None:
            return
        assert not any(record.suspect for record in held)
        assert not (claim.suspect and (held or len(claim.jobs) > 1))
        assert sum(job.rows for job in claim.jobs) <= max_rows or len(claim.jobs) == 1
        assert {self.seen[job.id].batch_key for job in claim.jobs} == {claim.batch_key}
        self.claims.append((worker, claim))
        self.attempts += [(job.id, job.attempt) for job in claim.jobs]

    @precondition(lambda self: self.claims)
    @rule(pick=picks, max_rows=st.integers(0, 4))
    def top_up(self, pick: int, max_rows: int) -> None:
        worker, claim = self.claims[pick % len(self.claims)]
        more = self.both(lambda ledger: ledger.top_up(worker, claim, max_rows, lease_s=LEASE_S))
        assert sum(job.rows for job in more) <= max_rows
        assert not (claim.suspect and more)
        self.attempts += [(job.id, job.attempt) for job in more]

    @rule(worker=workers)
    def heartbeat(self, worker: str) -> None:
        held = [(job, attempt) for job, attempt in self.attempts if self.holds(worker, job, attempt)]
        renewal = self.both(lambda ledger: ledger.renew(worker, held, lease_s=LEASE_S))
        assert not renewal.lost

    @rule(worker=workers)
    def a_death_is_seen(self, worker: str) -> None:
        held = [one for one in self.seen.values() if one.worker == worker and one.status in HELD]
        assert self.both(lambda ledger: ledger.lapse(worker)) == len(held)

    @precondition(lambda self: self.attempts)
    @rule(pick=picks)
    def shelve(self, pick: int) -> None:
        job, attempt = self.attempts[pick % len(self.attempts)]
        if self.both(lambda ledger: ledger.shelve(job, attempt)) is None:
            self.ran.add((job, attempt))

    @precondition(lambda self: self.attempts)
    @rule(pick=picks, move=st.sampled_from(["publish", "publish", "fail", "release", "stopped"]))
    def end(self, pick: int, move: str) -> None:
        job, attempt = self.attempts[pick % len(self.attempts)]
        before = self.seen.get(job)
        outcome = f'{{"code":"x","message":"{attempt}"}}'
        arguments = (outcome,) if move in {"publish", "fail"} else ()
        answer = self.both(lambda ledger: getattr(ledger, move)(job, attempt, *arguments))
        owned = before is not None and before.attempt == attempt and before.status in HELD
        if answer is Status.SUCCEEDED and owned:
            assert job not in self.results
            self.results[job] = outcome
        elif not owned and before is not None:
            assert self.ledger.get(job) == before  # refused, or a repeat that changed nothing

    @precondition(lambda self: self.known)
    @rule(pick=picks, move=st.sampled_from(["cancel", "cancel", "retry", "delete", "position", "ahead"]))
    def ask(self, pick: int, move: str) -> None:
        job = self.known[pick % len(self.known)]
        before = self.seen.get(job)
        self.both(lambda ledger: getattr(ledger, move)(job))
        if move == "delete" and before is not None and before.status.terminal:
            self.seen.pop(job)
            self.results.pop(job, None)

    @rule(group=st.sampled_from(GROUPS), limit=st.integers(1, 100))
    def cancel_group(self, group: str, limit: int) -> None:
        # Which jobs a smaller limit reaches is free, so the whole group is canceled.
        steps = [self.both(lambda ledger: ledger.cancel_group(group, limit=10_000)) for _ in range(2)]
        assert steps[1] == 0 or limit < 0

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0, LEASE_S + 1, LEASE_S + 1]))
    def time_passes(self, seconds: float) -> None:
        for world in self.worlds:
            world.clock.advance(seconds)

    @rule()
    def long_time_passes(self) -> None:
        for world in self.worlds:
            world.clock.advance(RETENTION_S / 2)

    @rule()
    def sweep(self) -> None:
        now = self.worlds[0].clock.now
        for job, record in list(self.seen.items()):
            if record.completed_at is not None and record.completed_at + RETENTION_S <= now:
                del self.seen[job]
        reaped: Reaped = self.both(lambda ledger: ledger.reap())
        assert not {*reaped.requeued} & {*reaped.failed}

    # ------------------------------------------------------------------------------------ what must hold

    def holds(self, worker: str, job: str, attempt: int) -> bool:
        record = self.seen.get(job)
        return (
            record is not None
            and (record.worker, record.attempt) == (worker, attempt)
            and record.status in HELD
        )

    @invariant()
    def all_is_true(self) -> None:
        if self.worlds:
            self.no_job_is_lost_and_the_twins_agree()
            self.counters_equal_reality()

    def no_job_is_lost_and_the_twins_agree(self) -> None:
        records = self.both(lambda ledger: ledger.get_many(self.known))
        for job, record in zip(self.known, records, strict=True):
            assert record is not None or job not in self.seen
            if record is not None:
                self.seen[job] = record
        for job, result in self.results.items():
            if job in self.seen:
                assert (self.seen[job].status, self.seen[job].result) == (Status.SUCCEEDED, result)
        assert all(record.strikes <= 3 for record in self.seen.values())

    def counters_equal_reality(self) -> None:
        alive = list(self.seen.values())
        for tenant, group in zip(TENANTS, GROUPS, strict=True):
            counts = self.both(partial(counts_of, tenant=tenant))
            assert drop_zeros(counts) == Counter(one.status for one in alive if one.tenant == tenant)
            members = Counter(one.status for one in alive if one.group == group)
            answer = self.both(partial(group_of, group=group))
            if members:
                assert (drop_zeros(answer.counts), answer.total) == (members, members.total())
            else:
                assert isinstance(answer, tuple)
        lanes = self.both(lambda ledger: ledger.lanes())
        waiting = Counter(one.lane for one in alive if one.status is Status.QUEUED)
        running = Counter(one.lane for one in alive if one.status in HELD)
        assert {one.lane: one.waiting for one in lanes if one.waiting} == waiting
        assert {one.lane: one.running for one in lanes if one.running} == running
        for one in lanes:
            ours = [record for record in alive if record.lane == one.lane]
            assert one.work == sum(record.work for record in ours if record.status is Status.QUEUED)
            assert one.running_work == sum(record.work for record in ours if record.status in HELD)

    def everything_can_be_served(self) -> None:
        """From any state: when the workers are dead and one good worker comes, every job ends."""
        offers = [LaneOffer(lane=lane, max_rows=4) for lane in LANES]
        for _ in range(4 * len(self.known) + 8):
            claim = self.both(lambda ledger: ledger.claim("last", offers, lease_s=LEASE_S))
            if claim is not None:
                for job in claim.jobs:
                    self.both(partial(publish, job=job))
                continue
            for world in self.worlds:
                world.clock.advance(LEASE_S + 1)
            self.both(lambda ledger: ledger.reap())
            left = [record for record in self.ledger.get_many(self.known) if record]
            if all(record.status.terminal for record in left):
                return
        raise AssertionError("jobs are stuck")


def plain(answer: Any) -> Any:
    """Make answers comparable where their order is free."""
    if isinstance(answer, Reaped):
        lists = {
            name: tuple(sorted(getattr(answer, name)))
            for name in ("requeued", "failed", "canceled", "expired")
        }
        return Reaped(**lists, lanes=dict(answer.lanes))
    return answer


def counts_of(ledger: Ledger, tenant: str) -> Any:
    return ledger.counts(tenant)


def group_of(ledger: Ledger, group: str) -> Any:
    return ledger.group(group)


def publish(ledger: Ledger, job: Claimed) -> Any:
    return ledger.publish(job.id, job.attempt, "{}")


def drop_zeros(counts: Any) -> dict[Status, int]:
    return {status: count for status, count in counts.items() if count}


def test_no_history_breaks_the_ledger(redis_url: str) -> None:
    class OverRedis(Ledgers):
        pass

    OverRedis.redis_url = redis_url
    run_state_machine_as_test(
        OverRedis,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
