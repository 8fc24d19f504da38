"""The outbox on both ledgers: what ended is told, once due, by one courier at a time, until it was told."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import redis

from pixelkiln_shared.errors import NotFound
from pixelkiln_shared.jobs import TERMINAL, Status
from pixelkiln_shared.keys import DELIVERED_S, GONE_S, UNDELIVERED_S, new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.outbox import (
    LEASE_S,
    LOOK_AGAIN_S,
    LOOK_FOR_S,
    MOST_AT_A_RECEIVER,
    SCHEDULE_S,
    Delivery,
    DeliveryStatus,
    Outbox,
    Word,
)
from tests.ledger_worlds import START, World, new_job, redis_world

URL = "https://shop.example/hooks?token=abc"
OTHER = "http://elsewhere.example:8080/hook"
ERROR = '{"code":"out_of_memory","message":"too large"}'
ALL = tuple(sorted(TERMINAL))


def hooked(world: World, count: int = 1, **fields: Any) -> list[str]:
    """Submit jobs that tell of every end."""
    return world.submit(count, **{"webhook": URL, "notify": ALL, **fields})


def ended(world: World, count: int = 1, **fields: Any) -> list[str]:
    """Submit such jobs and cancel them; returns their ids."""
    ids = hooked(world, count, **fields)
    for one in ids:
        world.ledger.cancel(one)
    return ids


def told(world: World) -> list[tuple[str, str]]:
    """Take what is due; event and subject of each, oldest first."""
    taken = sorted(world.outbox.claim(100), key=lambda one: one.sequence)
    return [(one.event, one.subject) for one in taken]


def only(world: World) -> Delivery:
    """Take the one delivery that is due."""
    (delivery,) = world.outbox.claim(100)
    return delivery


def test_both_outboxes_speak_the_contract(world: World) -> None:
    outbox: Outbox = world.outbox
    assert outbox.claim(10) == []


def test_each_end_is_told_by_its_name(world: World) -> None:
    job = hooked(world)[0]
    world.publish(world.claimed())
    assert told(world) == [("job.succeeded", job)]
    job = hooked(world)[0]
    world.ledger.fail(job, world.claimed()[0].attempt, ERROR)
    assert told(world) == [("job.failed", job)]
    job = ended(world)[0]
    assert told(world) == [("job.canceled", job)]
    job = hooked(world, start_deadline_s=5)[0]
    world.clock.advance(6)
    world.ledger.reap()
    assert told(world)[-1:] == [("job.expired", job)]


def test_a_job_killed_three_times_is_told_of(world: World) -> None:
    job = hooked(world)[0]
    for _ in range(3):
        world.claimed()
        world.crash()
    assert told(world) == [("job.failed", job)]


def test_children_of_a_failed_job_are_told_of(world: World) -> None:
    parent = hooked(world)[0]
    child = hooked(world, waits_for=(parent,))[0]
    world.ledger.cancel(parent)
    assert told(world) == [("job.canceled", parent), ("job.failed", child)]
    doomed = hooked(world, waits_for=(parent,))[0]
    assert told(world) == [("job.failed", doomed)]


def test_only_the_ends_asked_for_are_told(world: World) -> None:
    hooked(world, notify=(Status.FAILED, Status.EXPIRED))
    world.publish(world.claimed())
    assert told(world) == []


def test_a_job_without_a_webhook_is_told_to_nobody(world: World) -> None:
    world.one()
    world.publish(world.claimed())
    world.ledger.cancel(world.one())
    assert told(world) == []


def test_a_release_or_a_cancel_under_way_is_no_end(world: World) -> None:
    job = hooked(world)[0]
    (claimed,) = world.claimed()
    world.ledger.release(job, claimed.attempt)
    (claimed,) = world.claimed()
    world.ledger.cancel(job)
    assert told(world) == []
    world.ledger.stopped(job, claimed.attempt)
    assert told(world) == [("job.canceled", job)]


def test_an_answer_sent_twice_tells_once(world: World) -> None:
    job = hooked(world)[0]
    (claimed,) = world.claimed()
    world.ledger.publish(job, claimed.attempt, "{}")
    world.ledger.publish(job, claimed.attempt, "{}")
    assert told(world) == [("job.succeeded", job)]


def test_a_retried_job_is_told_of_again_under_another_id(world: World) -> None:
    job = ended(world)[0]
    first = only(world)
    world.outbox.settle(first, Word.DELIVERED, response=200)
    world.ledger.retry(job)
    world.publish(world.claimed())
    second = only(world)
    assert (second.event, second.subject) == ("job.succeeded", job)
    assert first.id != second.id
    assert [one.id for one in world.outbox.of(job)] == [second.id, first.id]


def test_a_delivery_says_all_about_itself(world: World) -> None:
    job = ended(world, tenant="bert")[0]
    waiting = world.outbox.of(job)[0]
    assert (waiting.status, waiting.attempts, waiting.due_at) == (DeliveryStatus.PENDING, 0, START)
    delivery = only(world)
    assert (delivery.tenant, delivery.url, delivery.created_at) == ("bert", URL, START)
    assert (delivery.attempts, delivery.attempted_at, delivery.due_at) == (1, START, None)
    assert delivery.id == f"msg_{job[-26:]}_1"
    assert world.outbox.settle(delivery, Word.FAILED, response=500, error="status") is DeliveryStatus.PENDING
    tried = world.outbox.get(delivery.id)
    assert (tried.response, tried.error, tried.due_at) == (500, "status", START + SCHEDULE_S[1])


def test_a_group_is_told_of_when_its_last_job_ends(world: World) -> None:
    group = new_id("grp")
    first = world.one(group=group, group_webhook=URL)
    second = world.one(group=group, kind=Kind.SEGMENT, waits_for=(first,))
    world.ledger.cancel(world.one(group=group))
    world.publish(world.claimed())
    assert told(world) == []
    world.publish(world.claimed(lane="segment.m"))
    assert world.ledger.get(second).status is Status.SUCCEEDED
    assert told(world) == [("group.completed", group)]


def test_a_group_whose_running_job_is_being_canceled_is_not_complete(world: World) -> None:
    group = new_id("grp")
    job = world.one(group=group, group_webhook=URL)
    (claimed,) = world.claimed()
    world.ledger.cancel_group(group)
    assert told(world) == []
    world.ledger.stopped(job, claimed.attempt)
    assert told(world) == [("group.completed", group)]
    assert len(world.outbox.of(group)) == 1


def test_a_job_that_fails_while_its_group_is_written_does_not_complete_it(world: World) -> None:
    parent = world.one()
    world.ledger.cancel(parent)
    group = new_id("grp")
    doomed = new_job(group=group, group_webhook=URL, waits_for=(parent,))
    later = [new_job(group=group, group_webhook=URL) for _ in range(3)]
    world.ledger.submit([doomed, *later])
    assert told(world) == []
    world.publish(world.claimed(max_rows=3))
    assert told(world) == [("group.completed", group)]
    lonely = new_id("grp")
    world.ledger.submit([new_job(group=lonely, group_webhook=URL, waits_for=(parent,))])
    assert told(world) == [("group.completed", lonely)]


def test_a_delivery_is_with_one_courier_at_a_time(world: World) -> None:
    ended(world)
    delivery = only(world)
    assert world.outbox.claim(100) == []
    assert world.outbox.settle(delivery, Word.DELIVERED, response=204) is DeliveryStatus.DELIVERED
    world.clock.advance(10 * LEASE_S)
    assert world.outbox.claim(100) == []
    assert world.outbox.get(delivery.id).response == 204


def test_a_killed_couriers_delivery_comes_back_under_the_same_id(world: World) -> None:
    ended(world)
    lost = only(world)
    world.clock.advance(LEASE_S + 1)
    again = only(world)
    assert (again.id, again.attempts) == (lost.id, 2)
    assert world.outbox.settle(lost, Word.FAILED, error="timeout") is None
    assert world.outbox.settle(again, Word.DELIVERED, response=200) is DeliveryStatus.DELIVERED
    assert world.outbox.settle(again, Word.DELIVERED, response=200) is None


def test_a_failing_delivery_follows_the_schedule_to_its_end(world: World) -> None:
    """With company at its receiver nobody looks in between, so the schedule shows bare."""
    job = ended(world)[0]
    tried = []
    while found := world.outbox.claim(1):
        tried.append(round(world.clock.now - START))
        world.outbox.settle(found[0], Word.FAILED, response=503, error="status")
        last = world.outbox.of(job)[0]
        if last.due_at is not None:
            world.clock.advance(last.due_at - world.clock.now)
    assert [one for one in tried if one in SCHEDULE_S] == list(SCHEDULE_S)
    between = [one for one in tried if one not in SCHEDULE_S]
    assert max(between) <= LOOK_FOR_S + LOOK_AGAIN_S
    assert all(b - a <= LOOK_AGAIN_S for a, b in pairwise(tried) if b < LOOK_FOR_S)
    assert last.status is DeliveryStatus.FAILED
    assert (last.response, last.due_at, last.attempts) == (503, None, len(tried))


def test_the_schedule_begins_when_a_try_has_failed(world: World) -> None:
    """Not when the job ended: our own outages, and a slow receiver's silence, take no try away."""
    ended(world)
    world.clock.advance(600)  # no courier lives
    world.outbox.claim(1)
    world.clock.advance(LEASE_S + 1)  # it was killed
    delivery = only(world)
    world.clock.advance(15)  # the receiver says nothing
    world.outbox.settle(delivery, Word.FAILED, error="timeout")
    assert world.outbox.get(delivery.id).due_at == world.clock.now + SCHEDULE_S[1]


def test_of_many_deliveries_to_a_dead_receiver_one_looks_after_it(world: World) -> None:
    ended(world, 10)
    tries = 0
    while world.clock.now < START + 280:
        for delivery in world.outbox.claim(100):
            tries += 1
            world.outbox.settle(delivery, Word.FAILED, error="connect")
        world.clock.advance(5)
    assert tries <= 2 * 10 + 280 / LOOK_AGAIN_S + 1


def test_a_receiver_that_is_back_gets_all_it_is_owed_at_once(world: World) -> None:
    ended(world, 10)
    while world.clock.now < START + 600:
        for delivery in world.outbox.claim(100):
            world.outbox.settle(delivery, Word.FAILED, error="connect")
        world.clock.advance(1)
    back, delivered = world.clock.now, 0
    while delivered < 10:
        for delivery in world.outbox.claim(100):
            world.outbox.settle(delivery, Word.DELIVERED, response=200)
            delivered += 1
        world.clock.advance(1)
        assert world.clock.now - back <= 60


def test_what_a_receiver_refuses_alone_is_not_hurried_by_what_it_takes(world: World) -> None:
    refused, tries = ended(world)[0], 0
    while world.clock.now < START + 2_200:
        ended(world)
        for delivery in world.outbox.claim(100):
            word = Word.FAILED if delivery.subject == refused else Word.DELIVERED
            tries += word is Word.FAILED
            world.outbox.settle(delivery, word, error="status")
        world.clock.advance(5)
    due = [one for one in SCHEDULE_S if one < 2_200]
    assert len(due) <= tries <= 2 * len(due)


def test_a_receiver_holds_few_couriers_and_others_are_served(world: World) -> None:
    ended(world, 3 * MOST_AT_A_RECEIVER)
    other = ended(world, webhook=OTHER)[0]
    taken = world.outbox.claim(100)
    assert len(taken) == MOST_AT_A_RECEIVER + 1
    assert other in {one.subject for one in taken}
    slow = [one for one in taken if one.subject != other]
    world.outbox.settle(slow[0], Word.DELIVERED, response=200)
    assert len(world.outbox.claim(100)) == 1


def test_a_failing_receiver_holds_one_courier(world: World) -> None:
    ended(world, 20)
    for delivery in world.outbox.claim(100):
        world.outbox.settle(delivery, Word.FAILED, error="timeout")
    assert len(world.outbox.claim(100)) == 1
    assert world.outbox.claim(100) == []


def test_a_url_that_is_gone_is_left_alone_and_others_of_its_host_are_not(world: World) -> None:
    jobs = ended(world, 3)
    world.clock.advance(1)
    neighbour = ended(world, webhook="https://shop.example/other")[0]
    delivery = world.outbox.claim(1)[0]
    assert world.outbox.settle(delivery, Word.GONE, response=410, error="gone") is DeliveryStatus.FAILED
    left = []
    for _ in range(4):
        left += told(world)
    assert left == [("job.canceled", neighbour)]
    for job in jobs:
        failed = world.outbox.of(job)[0]
        assert (failed.status, failed.error) == (DeliveryStatus.FAILED, "gone")
    world.clock.advance(GONE_S + 1)
    job = ended(world)[0]
    assert ("job.canceled", job) in told(world)


def test_asking_again_makes_a_delivery_due_under_a_fresh_schedule(world: World) -> None:
    job = ended(world)[0]
    world.outbox.settle(only(world), Word.GONE, response=410, error="gone")
    assert told(world) == []
    world.clock.advance(3_000)
    again = world.outbox.again(world.outbox.of(job)[0].id)
    assert (again.status, again.due_at) == (DeliveryStatus.PENDING, world.clock.now)
    delivery = only(world)
    assert delivery.id == again.id
    world.outbox.settle(delivery, Word.FAILED, error="timeout")
    assert world.outbox.get(again.id).due_at == world.clock.now + SCHEDULE_S[1]
    with pytest.raises(NotFound):
        world.outbox.again("msg_0_1")


def test_asking_again_for_one_that_is_being_tried_does_not_double_it(world: World) -> None:
    ended(world)
    delivery = only(world)
    world.outbox.again(delivery.id)
    assert world.outbox.claim(100) == []
    assert world.outbox.settle(delivery, Word.DELIVERED, response=200) is DeliveryStatus.DELIVERED


def test_listings_go_by_tenant_status_and_page(world: World) -> None:
    jobs = [ended(world)[0] for _ in range(5)]
    ended(world, tenant="bert")
    page = world.outbox.list("anna", limit=2)
    assert [one.subject for one in page.deliveries] == jobs[:-3:-1]
    rest = world.outbox.list("anna", limit=10, after=page.after)
    assert [one.subject for one in rest.deliveries] == jobs[2::-1]
    assert rest.after is None
    mine = next(one for one in world.outbox.claim(100) if one.tenant == "anna")
    world.outbox.settle(mine, Word.DELIVERED, response=200)
    delivered = world.outbox.list("anna", status=DeliveryStatus.DELIVERED).deliveries
    assert [one.id for one in delivered] == [mine.id]
    assert len(world.outbox.list("anna", status=DeliveryStatus.PENDING).deliveries) == 4
    assert world.outbox.list("cora").deliveries == ()
    assert [world.outbox.counts("anna")[one] for one in DeliveryStatus] == [4, 1, 0]


def test_deliveries_are_forgotten_some_time_after_their_end(world: World) -> None:
    ended(world, 2)
    good, bad = world.outbox.claim(100)
    world.outbox.settle(good, Word.DELIVERED, response=200)
    world.outbox.settle(bad, Word.FAILED, error="status", schedule_s=())
    assert world.outbox.get(bad.id).status is DeliveryStatus.FAILED
    world.clock.advance(DELIVERED_S + 1)
    world.outbox.claim(1)
    with pytest.raises(NotFound):
        world.outbox.get(good.id)
    assert world.outbox.get(bad.id).id == bad.id
    world.clock.advance(UNDELIVERED_S)
    world.outbox.claim(1)
    assert world.outbox.list("anna").deliveries == ()


def test_a_delivery_that_a_hand_deleted_stops_no_other(redis_url: str) -> None:
    with redis_world(redis_url) as world, redis.Redis.from_url(redis_url) as client:
        first, second, third = ended(world, 3)
        world.outbox.settle(world.outbox.claim(1)[0], Word.DELIVERED, response=200)
        left = [one for job in (first, second, third) for one in world.outbox.of(job) if one.due_at]
        client.delete(f"pk:delivery:{left[0].id}")
        assert [one.id for one in world.outbox.claim(100)] == [left[1].id]
        client.delete(f"pk:delivery:{left[1].id}")
        world.clock.advance(LEASE_S + 1)
        job = ended(world)[0]
        assert told(world) == [("job.canceled", job)]


def test_a_message_outlives_the_record_of_its_job(world: World) -> None:
    job = ended(world)[0]
    world.ledger.delete(job)
    assert told(world) == [("job.canceled", job)]
