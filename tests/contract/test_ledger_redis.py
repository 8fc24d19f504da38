"""What only the ledger in Redis can show: its clock, lost answers, threads, failures, size, clean keys."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from pixelkiln_shared.errors import LeaseLost, Misconfigured, NotFound, QueueFull, RedisUnavailable
from pixelkiln_shared.jobs import TERMINAL, Status
from pixelkiln_shared.keys import CANCELS, UNDELIVERED_S, new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger import RedisLedger, check_redis, open_ledger, redis_client
from pixelkiln_shared.ledger.contract import Idempotency, LaneOffer
from pixelkiln_shared.ledger.outbox import Word
from pixelkiln_shared.ledger.redis_ledger import CHUNK
from pixelkiln_shared.settings import Settings
from tests.ledger_worlds import LANE, TEST_CLOCK, Clock, World, new_job, redis_world

OFFER = [LaneOffer(lane=LANE, max_rows=4)]
HOOK = "https://shop.example/hook"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = redis_client(Settings(redis_url=redis_url))
    yield client
    client.close()


@pytest.fixture
def ledger(client: redis.Redis) -> RedisLedger:
    return RedisLedger(client)


def test_leases_run_on_the_clock_of_redis(ledger: RedisLedger) -> None:
    job = new_job()
    ledger.submit([job])
    ledger.claim("w", OFFER, lease_s=0.05)
    assert ledger.reap().requeued == ()
    time.sleep(0.06)
    assert ledger.reap().requeued == (job.id,)
    assert abs(ledger.get(job.id).created_at - time.time()) < 60


def test_a_redis_that_forgot_the_scripts_is_taught_again(ledger: RedisLedger, client: redis.Redis) -> None:
    ledger.submit([new_job()])
    client.script_flush()
    assert ledger.claim("w", OFFER, lease_s=5) is not None


def test_thousands_go_in_chunks(ledger: RedisLedger) -> None:
    jobs = [new_job() for _ in range(3 * CHUNK + 7)]
    assert ledger.submit(jobs).ids == tuple(job.id for job in jobs)
    assert ledger.waiting() == {LANE: len(jobs)}
    newest = ledger.jobs("anna", limit=3).records
    assert [record.id for record in newest] == [job.id for job in jobs[:-4:-1]]


def test_chunks_too_are_all_or_none(ledger: RedisLedger) -> None:
    jobs = [new_job() for _ in range(2 * CHUNK)]
    with pytest.raises(QueueFull):
        ledger.submit(jobs, max_waiting=2 * CHUNK - 1)
    with pytest.raises(NotFound):
        ledger.submit([*jobs, new_job(waits_for=(new_id("job"),))])
    assert ledger.waiting() == {}
    with pytest.raises(ValueError, match="at most 1000"):
        ledger.submit(jobs, idempotency=Idempotency(scope="s", key="k", fingerprint="f"))


def test_a_thousand_submits_with_one_key_make_one_job(ledger: RedisLedger) -> None:
    key = Idempotency(scope="s", key="k", fingerprint="f")

    def submit(_: int) -> tuple[str, ...]:
        return ledger.submit([new_job()], idempotency=key).ids

    with ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(submit, range(1_000)))
    assert len(ids) == 1
    assert ledger.counts("anna")[Status.QUEUED] == 1


def test_neither_key_nor_credential_appear_in_redis(ledger: RedisLedger, client: redis.Redis) -> None:
    ledger.submit([new_job()], idempotency=Idempotency(scope="secret", key="k*\n", fingerprint="f"))
    names = list(client.scan_iter("*idempotency*"))
    assert len(names) == 1
    assert "secret" not in names[0]
    assert 86_000 < client.ttl(names[0]) <= 86_400


def test_many_workers_share_the_jobs_without_overlap(ledger: RedisLedger) -> None:
    ledger.submit([new_job() for _ in range(400)])
    done: Counter[str] = Counter()
    lock = threading.Lock()

    def work(number: int) -> None:
        while claim := ledger.claim(f"w{number}", OFFER, lease_s=30):
            for job in claim.jobs:
                ledger.publish(job.id, job.attempt, "{}")
            with lock:
                done.update(job.id for job in claim.jobs)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 400
    assert set(done.values()) == {1}


class Lossy(redis.Connection):
    """A connection that may lose the answer of the next script, after Redis has run it."""

    lose = False

    def send_command(self, *args: Any, **options: Any) -> None:
        super().send_command(*args, **options)  # type: ignore[no-untyped-call]
        if Lossy.lose and args[0] == "EVALSHA":
            Lossy.lose = False
            self.read_response()
            self.disconnect()  # type: ignore[no-untyped-call]
            raise RedisConnectionError("cut")


@pytest.fixture
def lossy(redis_url: str) -> Iterator[RedisLedger]:
    """A ledger whose client neither repeats a call by itself nor, when told, hears the answer."""
    retry = Retry(NoBackoff(), 0)
    pool = redis.ConnectionPool.from_url(
        redis_url, connection_class=Lossy, decode_responses=True, retry=retry
    )
    client = redis.Redis(connection_pool=pool)
    ledger = RedisLedger(client)
    ledger.submit([new_job(lane="generate.warm")])
    assert ledger.claim("warm", [LaneOffer(lane="generate.warm", max_rows=1)], lease_s=5)
    assert ledger.publish(ledger.jobs("anna").records[0].id, 1, "{}")
    yield ledger
    pool.disconnect()


def test_a_claim_whose_answer_was_lost_is_given_again(lossy: RedisLedger) -> None:
    jobs = [new_job() for _ in range(6)]
    lossy.submit(jobs)
    lossy.claim("other", OFFER, lease_s=5)
    Lossy.lose = True
    with pytest.raises(RedisUnavailable):
        lossy.claim("w", [LaneOffer(lane=LANE, max_rows=2)], lease_s=5)
    claim = lossy.claim("w", OFFER, lease_s=5)
    assert claim is not None
    assert [(job.id, job.attempt) for job in claim.jobs] == [(jobs[4].id, 1), (jobs[5].id, 1)]
    assert lossy.claim("w", OFFER, lease_s=5) is None


def test_riders_whose_answer_was_lost_come_with_the_next_claim(lossy: RedisLedger) -> None:
    jobs = [new_job() for _ in range(3)]
    lossy.submit(jobs)
    claim = lossy.claim("w", [LaneOffer(lane=LANE, max_rows=1)], lease_s=5)
    assert claim is not None
    lossy.top_up("w", claim, 1, lease_s=5)
    lossy.submit([new_job()])
    Lossy.lose = True
    with pytest.raises(RedisUnavailable):
        lossy.top_up("w", claim, 1, lease_s=5)
    again = lossy.claim("w", [LaneOffer(lane=LANE, max_rows=4)], lease_s=5)
    assert again is not None
    assert [(job.id, job.attempt) for job in again.jobs] == [(jobs[2].id, 1)]


def test_a_publish_whose_answer_was_lost_succeeds_when_repeated(lossy: RedisLedger) -> None:
    job = new_job()
    lossy.submit([job])
    lossy.claim("w", OFFER, lease_s=5)
    Lossy.lose = True
    with pytest.raises(RedisUnavailable):
        lossy.publish(job.id, 1, '{"n":1}')
    assert lossy.publish(job.id, 1, '{"n":1}') is Status.SUCCEEDED
    with pytest.raises(LeaseLost):
        lossy.publish(job.id, 1, '{"n":2}')


def test_a_submit_whose_answer_was_lost_may_be_repeated(lossy: RedisLedger) -> None:
    jobs = [new_job() for _ in range(3)]
    Lossy.lose = True
    with pytest.raises(RedisUnavailable):
        lossy.submit(jobs)
    assert len(lossy.submit(jobs).ids) == 3
    assert lossy.waiting() == {LANE: 3}


def test_a_pause_of_redis_blames_nobody_but_not_for_ever(client: redis.Redis) -> None:
    world = World(RedisLedger(client, away_s=10, clock=TEST_CLOCK), Clock(client))
    job = world.one()
    world.ledger.reap()
    strikes = []
    for number in range(4):
        world.claim(f"w{number}")
        world.crash(after_s=60)
        strikes.append(world.ledger.get(job).strikes)
    assert strikes == [0, 0, 1, 2]


def test_a_pause_excuses_all_that_lapsed_in_it_however_many(client: redis.Redis) -> None:
    world = World(RedisLedger(client, away_s=10, clock=TEST_CLOCK), Clock(client))
    jobs = world.submit(450)
    world.ledger.reap()
    for number in range(len(jobs)):
        world.claim(f"w{number}")
    world.clock.advance(60)
    assert len(world.ledger.reap().requeued) == len(jobs)
    assert {record.strikes for record in world.ledger.get_many(jobs) if record} == {0}


def test_what_a_worker_holds_can_be_told(client: redis.Redis) -> None:
    ledger = RedisLedger(client, clock=TEST_CLOCK)
    world = World(ledger, Clock(client))
    first, second = world.submit(2)
    world.claim("w1", max_rows=2)
    world.ledger.release(first, 1)
    world.claim("w2")
    held = [ledger.held_by(worker) for worker in ("w1", "w2", "w3")]
    assert held == [[(second, 1)], [(first, 2)], []]


def test_a_cancel_is_published(ledger: RedisLedger, client: redis.Redis) -> None:
    job = new_job()
    ledger.submit([job])
    ledger.claim("w", OFFER, lease_s=5)
    with client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(CANCELS)
        channel.get_message(timeout=2)
        ledger.cancel(job.id)
        message = next(found for found in (channel.get_message(timeout=1) for _ in range(5)) if found)
    assert message["data"] == job.id


def test_no_key_outlives_the_work(client: redis.Redis) -> None:
    """After many jobs of all fates only the fixed keys and the capped streams remain."""
    world = World(RedisLedger(client, retention_s=60, clock=TEST_CLOCK), Clock(client))
    for tenant in ("anna", "bert", "cora"):
        told = {
            "webhook": "https://a.example/",
            "notify": tuple(TERMINAL),
            "group_webhook": "https://b.example/",
        }
        world.submit(10, tenant=tenant, group=f"g-{tenant}", start_deadline_s=500, **told)
        parent = world.one(tenant=tenant)
        world.submit(2, tenant=tenant, kind=Kind.SEGMENT, waits_for=(parent,))
    world.claimed("dead", max_rows=3)
    world.crash()
    for _ in range(60):
        world.publish(world.claimed(max_rows=4))
        world.publish(world.claimed(lane="segment.m"))
    for record in world.ledger.jobs("anna", status=Status.QUEUED).records:
        world.ledger.cancel(record.id)
    world.clock.advance(600)
    for _ in range(3):
        world.ledger.reap()
    while found := world.outbox.claim(100):
        for delivery in found:
            word = Word.GONE if delivery.url.startswith("https://b") else Word.DELIVERED
            world.outbox.settle(delivery, word)
    world.clock.advance(UNDELIVERED_S + 1)
    world.outbox.claim(1)
    left = {name for name in client.scan_iter("pk:*") if not name.startswith("pk:events:")}
    assert left == {"pk:sequence", "pk:blocked", "pk:swept", "pk:posted"}
    assert client.get("pk:blocked") == "0"


def test_a_long_batch_key_or_odd_group_is_only_text(ledger: RedisLedger) -> None:
    job = new_job(batch_key="k" * 5_000, group="g:x\n*'\"", spec="✓" * 3_000)
    ledger.submit([job])
    record = ledger.get(job.id)
    assert (record.batch_key, record.group, record.spec) == (job.batch_key, job.group, job.spec)
    assert ledger.claim("w", OFFER, lease_s=5) is not None


def test_a_waiting_job_costs_little_memory(ledger: RedisLedger, client: redis.Redis) -> None:
    ledger.submit([new_job()])
    before = client.info("memory")["used_memory"]
    ledger.submit([new_job(spec="x" * 200) for _ in range(5_000)])
    assert (client.info("memory")["used_memory"] - before) / 5_000 <= 1_228


def test_a_claim_costs_the_same_with_many_waiting(ledger: RedisLedger, client: redis.Redis) -> None:
    """Counted in what Redis does, not in time: commands run inside one claim."""

    def commands() -> int:
        client.config_resetstat()
        assert ledger.claim("w", OFFER, lease_s=60) is not None
        stats = client.info("commandstats")
        return sum(int(one["calls"]) for name, one in stats.items() if name.startswith("cmdstat_"))

    ledger.submit([new_job(tenant=f"t{number % 50:02}") for number in range(200)])
    ledger.claim("w", OFFER, lease_s=60)
    few = commands()
    ledger.submit([new_job(tenant=f"t{number % 50:02}") for number in range(10_000)])
    assert abs(commands() - few) <= 8


def test_a_redis_that_is_not_there_is_unavailable() -> None:
    ledger = open_ledger(Settings(redis_url="redis://127.0.0.1:1/0", redis_timeout_s=0.5))
    for call in (lambda: ledger.get("x"), lambda: ledger.submit([new_job()]), lambda: ledger.counts("t")):
        with pytest.raises(RedisUnavailable):
            call()


def test_a_full_redis_is_unavailable_and_recovers(ledger: RedisLedger, client: redis.Redis) -> None:
    job = new_job()
    ledger.submit([job])
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisUnavailable):
            ledger.submit([new_job()])
        with pytest.raises(RedisUnavailable):
            ledger.claim("w", OFFER, lease_s=5)
        assert ledger.get(job.id).status is Status.QUEUED
        assert ledger.counts("anna")[Status.QUEUED] == len(ledger.jobs("anna").records) == 1
    finally:
        client.config_set("maxmemory", 0)
    assert ledger.claim("w", OFFER, lease_s=5) is not None


def test_a_read_only_redis_is_unavailable(ledger: RedisLedger, client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(RedisUnavailable):
            ledger.submit([new_job()])
    finally:
        client.replicaof("NO", "ONE")
    ledger.submit([new_job()])


def test_a_wrong_command_is_a_bug_and_says_so(ledger: RedisLedger, client: redis.Redis) -> None:
    client.set("pk:waiting", "not a hash")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        ledger.submit([new_job()])


def test_the_check_refuses_a_redis_that_evicts(client: redis.Redis) -> None:
    assert "append-only" in check_redis(client)[0]
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(Misconfigured, match="noeviction"):
            check_redis(client)
    finally:
        client.config_set("maxmemory-policy", "noeviction")


def test_the_ledger_wants_text_answers(redis_url: str) -> None:
    with pytest.raises(ValueError, match="decode_responses"):
        RedisLedger(redis.Redis.from_url(redis_url))


def test_who_tells_nobody_pays_nothing(redis_url: str) -> None:
    """Counted in what Redis does at an end: the same as for a job that asks for other ends."""
    with redis_world(redis_url) as world, redis.Redis.from_url(redis_url) as client:

        def commands(**fields: Any) -> int:
            job = world.one(**fields)
            client.config_resetstat()
            world.ledger.cancel(job)
            stats = client.info("commandstats")
            return sum(int(one["calls"]) for name, one in stats.items() if "config" not in name)

        commands()  # teaches Redis the script
        plain = commands()
        assert commands(webhook=HOOK, notify=(Status.EXPIRED,)) == plain
        assert commands(webhook=HOOK, notify=(Status.CANCELED,)) > plain
        group = new_id("grp")
        world.one(group=group, lane="generate.other")
        assert commands(group=group) <= plain + 3  # its index twice, and whether the group has a webhook
