"""Chunks submitted one behind the other, and what jobs of one call share, on both ledgers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from pixelkiln_shared.errors import NotFound, QueueFull, RedisUnavailable
from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger import RedisLedger, redis_client
from pixelkiln_shared.ledger.submitting import fresh_record
from pixelkiln_shared.settings import Settings
from tests.ledger_worlds import LANE, World, new_job


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = redis_client(Settings(redis_url=redis_url, redis_timeout_s=1))
    yield client
    client.close()


def test_chunks_are_written_in_their_order(world: World) -> None:
    chunks = [[new_job() for _ in range(3)] for _ in range(3)]
    with world.ledger.bulk() as bulk:
        for chunk in chunks:
            bulk.send(chunk)
            assert bulk.answer().ids == tuple(job.id for job in chunk)
    ids = [job.id for chunk in chunks for job in chunk]
    assert [record.id for record in world.ledger.jobs("anna").records] == ids[::-1]
    assert world.serve(9) == ids


def test_a_chunk_that_does_not_fit_is_refused_whole(world: World) -> None:
    with world.ledger.bulk(max_waiting=5) as bulk:
        bulk.send([new_job() for _ in range(3)])
        bulk.answer()
        bulk.send([new_job() for _ in range(3)])
        with pytest.raises(QueueFull):
            bulk.answer()
        bulk.send([new_job() for _ in range(2)])
        bulk.answer()
    assert world.ledger.counts("anna")[Status.QUEUED] == 5


def test_jobs_of_one_call_keep_what_is_their_own(world: World) -> None:
    group = new_id("grp")
    jobs = [
        new_job(spec='{"v":1,"n":0}'),
        new_job(kind=Kind.SEGMENT, batch_key="m:128"),
        new_job(tenant="ben", priority=Priority.BULK),
        new_job(group=group, rows=3),
        new_job(group=group, spec='{"v":1,"n":4}'),
        new_job(spec='{"v":1,"n":5}', start_deadline_s=5, retention_s=60),
    ]
    world.ledger.submit(jobs)
    for job, record in zip(jobs, world.ledger.get_many([job.id for job in jobs]), strict=True):
        assert record is not None
        for name in ("id", "kind", "lane", "tenant", "priority", "batch_key", "rows", "spec", "group"):
            assert getattr(record, name) == getattr(job, name), name
    assert world.ledger.group(group).total == 2
    assert {lane.lane: lane.waiting for lane in world.ledger.lanes()} == {LANE: 5, "segment.m": 1}
    world.clock.advance(6)
    assert world.ledger.reap().expired == (jobs[5].id,)


def test_a_job_named_twice_in_a_call_is_written_once(world: World) -> None:
    job = new_job(group=new_id("grp"))
    world.ledger.submit([job, job, new_job()])
    assert world.ledger.counts("anna")[Status.QUEUED] == 2
    assert len(world.serve(3)) == 2


def test_parents_and_children_may_come_in_one_call(world: World) -> None:
    parent = new_job(group=(group := new_id("grp")))
    children = [new_job(waits_for=(parent.id,), group=group) for _ in range(3)]
    world.ledger.submit([parent, *children, new_job(group=group)])
    assert world.ledger.group(group).counts[Status.BLOCKED] == 3
    world.ledger.cancel(parent.id)
    assert world.ledger.group(group).counts[Status.FAILED] == 3


def test_a_foreign_group_refuses_the_whole_call(world: World) -> None:
    group = new_id("grp")
    world.ledger.submit([new_job(tenant="ben", group=group)])
    with pytest.raises(NotFound):
        world.ledger.submit([new_job(), new_job(group=group)])
    assert world.ledger.counts("anna")[Status.QUEUED] == 0


def test_an_answer_cut_off_is_asked_for_again_and_nothing_is_written_twice(client: redis.Redis) -> None:
    ledger = RedisLedger(client)
    jobs = [new_job(group=new_id("grp")) for _ in range(50)]
    with ledger.bulk() as bulk:
        bulk.send(jobs)
        client.client_kill_filter(_type="normal", skipme=True)
        assert bulk.answer().ids == tuple(job.id for job in jobs)
        bulk.send([new_job()])
        bulk.answer()
    assert ledger.waiting() == {LANE: 51}


def test_a_redis_that_forgot_the_scripts_between_two_chunks_is_taught_again(client: redis.Redis) -> None:
    ledger = RedisLedger(client)
    with ledger.bulk() as bulk:
        for _ in range(3):
            client.script_flush()
            bulk.send([new_job()])
            bulk.answer()
    assert ledger.waiting() == {LANE: 3}


def test_an_answer_nobody_waits_for_is_read_by_nobody_else(client: redis.Redis) -> None:
    ledger = RedisLedger(client)
    ledger.submit([job := new_job()])
    with contextlib.suppress(KeyboardInterrupt), ledger.bulk() as bulk:
        bulk.send([new_job()])
        raise KeyboardInterrupt
    for _ in range(3):
        assert ledger.get(job.id).id == job.id


def test_a_silent_redis_is_waited_for_once(client: redis.Redis) -> None:
    ledger = RedisLedger(client)
    with ledger.bulk() as bulk:
        bulk.send([new_job()])
        bulk.answer()
        client.client_pause(1_500)
        bulk.send([new_job()])
        with pytest.raises(RedisUnavailable, match="does not answer"):
            bulk.answer()


def test_a_submit_tells_what_waits_in_its_lanes(world: World) -> None:
    world.submit(2)
    jobs = [
        new_job(),
        new_job(kind=Kind.SEGMENT),
        new_job(kind=Kind.DEPTH, waits_for=(world.one(lane="generate.n"),)),
    ]
    assert world.ledger.submit(jobs).waiting == {LANE: 3, "segment.m": 1, "depth.m": 0}


@pytest.mark.parametrize(
    "fields", [{}, {"group": new_id("grp"), "rows": 3, "work": 7, "priority": Priority.BULK}]
)
def test_the_record_of_a_fresh_job_is_known_without_asking(world: World, fields: dict[str, Any]) -> None:
    world.submit(2)
    job = new_job(**fields)
    submitted = world.ledger.submit([job])
    assert fresh_record(job, submitted) == world.ledger.get(job.id)


def test_only_the_ledger_knows_the_record_of_a_job_written_before_or_with_parents(world: World) -> None:
    job = new_job()
    world.ledger.submit([job])
    assert fresh_record(job, world.ledger.submit([job])) is None
    child = new_job(waits_for=(job.id,))
    assert fresh_record(child, world.ledger.submit([child])) is None


def test_chunks_under_way_when_the_connection_breaks_are_each_written_once(client: redis.Redis) -> None:
    ledger = RedisLedger(client)
    chunks = [[new_job() for _ in range(20)] for _ in range(4)]
    with ledger.bulk() as bulk:
        for chunk in chunks[:3]:
            bulk.send(chunk)
        client.client_kill_filter(_type="normal", skipme=True)
        assert bulk.answer().ids == tuple(job.id for job in chunks[0])
        bulk.send(chunks[3])
        for chunk in chunks[1:]:
            assert bulk.answer().ids == tuple(job.id for job in chunk)
    assert ledger.waiting() == {LANE: 80}
    newest_first = [job.id for chunk in chunks for job in chunk][::-1]
    assert [record.id for record in ledger.jobs("anna", limit=100).records] == newest_first


def test_one_sweep_expires_and_forgets_many(world: World) -> None:
    world.ledger.submit([new_job(start_deadline_s=5, retention_s=60) for _ in range(900)])
    waiting = world.one()
    world.clock.advance(6)
    assert len(world.ledger.reap().expired) == 900
    world.clock.advance(61)
    world.ledger.reap()
    assert [record.id for record in world.ledger.jobs("anna").records] == [waiting]
