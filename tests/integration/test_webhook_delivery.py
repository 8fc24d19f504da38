"""Couriers against real receivers, over a real outbox: signed, retried, told once, in nobody's way."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import redis
from standardwebhooks import Webhook, WebhookVerificationError

from pixelkiln.fetch import Fetcher, Guard
from pixelkiln.webhooks import delivery as delivery_module
from pixelkiln.webhooks.delivery import Courier
from pixelkiln.webhooks.signing import read_secrets
from pixelkiln_shared.errors import Misconfigured, RedisUnavailable
from pixelkiln_shared.jobs import TERMINAL, Status
from pixelkiln_shared.keys import LedgerKey
from pixelkiln_shared.ledger import RedisLedger
from pixelkiln_shared.ledger.outbox import Delivery, DeliveryStatus, RedisOutbox
from tests.ledger_worlds import new_job
from tests.receivers import OK, Got, receiving, status

OLD = "whsec_" + base64.b64encode(b"the old secret of these tests, 32").decode()
NEW = "whsec_" + base64.b64encode(b"the new secret of these tests, 32").decode()
SOON_S = (*(step / 5 for step in range(100)), 600)  # a busy machine may be late for the first of them


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def outbox(client: redis.Redis) -> RedisOutbox:
    return RedisOutbox(client)


@pytest.fixture
def end(client: redis.Redis) -> Callable[..., list[str]]:
    """Lets jobs end that tell a URL."""
    ledger = RedisLedger(client)

    def ended(url: str, count: int = 1) -> list[str]:
        jobs = [new_job(webhook=url, notify=tuple(TERMINAL)) for _ in range(count)]
        ledger.submit(jobs)
        for job in jobs:
            assert ledger.cancel(job.id) is Status.CANCELED
        return [job.id for job in jobs]

    return ended


def body_of(delivery: Delivery) -> str:
    return json.dumps({"type": delivery.event, "data": {"id": delivery.subject, "label": "füchse 🦊"}})


@contextmanager
def courier(
    outbox: RedisOutbox,
    *,
    schedule_s: Sequence[float] = SOON_S,
    secrets: str = NEW,
    timeout_s: float = 1.0,
    hosts: Sequence[str] = ("127.0.0.1",),
    body: Callable[[Delivery], str] = body_of,
) -> Iterator[None]:
    """Run a courier in a thread of its own."""

    async def work() -> None:
        fetcher = Fetcher(Guard(hosts), timeout_s=timeout_s)
        one = Courier(outbox, fetcher, read_secrets(secrets), body, schedule_s=schedule_s, poll_s=0.05)
        running = asyncio.create_task(one.run())
        while not stop.is_set():
            await asyncio.sleep(0.02)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    stop = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def settled(outbox: RedisOutbox, job: str, *, within_s: float = 15.0) -> Delivery:
    """Wait until a job's delivery has ended."""
    return wait_until(outbox, job, lambda one: one.status is not DeliveryStatus.PENDING, within_s)


def tried(outbox: RedisOutbox, job: str, *, times: int = 1, within_s: float = 15.0) -> Delivery:
    """Wait until a job's delivery was tried so often and waits."""
    return wait_until(outbox, job, lambda one: one.attempts >= times and one.due_at is not None, within_s)


def wait_until(outbox: RedisOutbox, job: str, so: Callable[[Delivery], bool], within_s: float) -> Delivery:
    deadline = time.monotonic() + within_s
    while not so(found := outbox.of(job)[0]):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def _rests(delivery: Delivery) -> bool:
    """Whether a delivery was tried and is not tried again soon."""
    return delivery.due_at is not None and delivery.due_at - (delivery.attempted_at or delivery.due_at) > 30


def verified(got: Got, secret: str = NEW) -> Any:
    """Return a message that was signed for its receiver."""
    (own,) = read_secrets(secret).of(f"http://{got.headers['host']}")
    return Webhook(own).verify(got.body, got.headers)


def test_a_message_verifies_and_says_what_happened(
    outbox: RedisOutbox, end: Callable[..., list[str]]
) -> None:
    with receiving() as receiver, courier(outbox):
        (job,) = end(receiver.url)
        delivery = settled(outbox, job)
    (got,) = receiver.got
    assert verified(got)["data"] == {"id": job, "label": "füchse 🦊"}
    assert got.headers["webhook-id"] == delivery.id
    assert got.headers["content-type"] == "application/json"
    assert (delivery.status, delivery.response, delivery.attempts) == (DeliveryStatus.DELIVERED, 200, 1)


def test_a_forged_or_altered_message_does_not_verify(
    outbox: RedisOutbox, end: Callable[..., list[str]]
) -> None:
    with receiving() as receiver, courier(outbox):
        end(receiver.url)
        (got,) = receiver.wait_for(1)
    with pytest.raises(WebhookVerificationError):
        verified(replace(got, body=got.body + b" "))
    with pytest.raises(WebhookVerificationError):
        verified(replace(got, headers={**got.headers, "webhook-id": "msg_other"}))
    with pytest.raises(WebhookVerificationError):
        verified(got, OLD)


def test_while_secrets_are_rotated_both_verify(outbox: RedisOutbox, end: Callable[..., list[str]]) -> None:
    with receiving() as receiver, courier(outbox, secrets=f"{NEW}, {OLD}"):
        end(receiver.url)
        (got,) = receiver.wait_for(1)
    assert verified(got, NEW) == verified(got, OLD)
    assert got.headers["webhook-signature"].count("v1,") == 2


def test_each_receiver_has_a_secret_of_its_own(outbox: RedisOutbox, end: Callable[..., list[str]]) -> None:
    with receiving() as one, receiving() as other, courier(outbox):
        end(one.url)
        end(other.url)
        (first,), (second,) = one.wait_for(1), other.wait_for(1)
    assert verified(first)["type"] == verified(second)["type"]
    for stranger in (*read_secrets(NEW).of(other.url), NEW):
        with pytest.raises(WebhookVerificationError):
            Webhook(stranger).verify(first.body, first.headers)


def test_a_receiver_may_bring_its_own_secrets(outbox: RedisOutbox, end: Callable[..., list[str]]) -> None:
    with receiving() as own, receiving() as other:
        origin = own.url.removesuffix("/hook")
        with courier(outbox, secrets=f"{NEW},{origin}={OLD},{origin.upper()}/={NEW}"):
            end(own.url)
            end(other.url)
            (got,), (derived,) = own.wait_for(1), other.wait_for(1)
    assert Webhook(OLD).verify(got.body, got.headers) == Webhook(NEW).verify(got.body, got.headers)
    assert got.headers["webhook-signature"].count("v1,") == 2
    assert verified(derived)


def test_a_receiver_is_an_origin() -> None:
    """The secret is what other programs would derive; who was given one keeps it for ever."""
    secrets = read_secrets(NEW)
    expected = (
        "whsec_"
        + base64.b64encode(
            hmac.digest(base64.b64decode(NEW[6:]), b"webhook-secret-1\nhttps://shop.example", "sha256")
        ).decode()
    )
    same = ["https://shop.example/a", "https://SHOP.example:443/b?c=1", "https://shop.example."]
    assert {secrets.of(url) for url in same} == {(expected,)}
    others = ["http://shop.example/a", "https://shop.example:8443/a", "https://a.shop.example/"]
    assert len({secrets.of(url) for url in [*others, *same]}) == 4


def test_a_secret_that_is_none_is_refused_and_not_repeated() -> None:
    named = f"https://shop.example={OLD}"
    for wrong in (
        "topsecret",
        "whsec_c2hvcnQ=",
        f"{NEW},whsec_???",
        OLD.removeprefix("whsec_"),
        named,
        f"{NEW},shop.example={OLD}",
        f"{NEW},https://shop.example/hooks={OLD}",
        f"{NEW},https://shop.example=whsec_c2hvcnQ=",
    ):
        with pytest.raises(Misconfigured) as refused:
            read_secrets(wrong)
        assert wrong.rpartition("whsec_")[2] not in str(refused.value)
    assert read_secrets(f"{NEW},{named}").named
    assert not read_secrets(" ")


@pytest.mark.parametrize(
    ("bad", "error", "response"),
    [
        (status(500), "status", 500),
        (status(404), "status", 404),
        (status(301, "Location: http://127.0.0.1:1/"), "redirect", 301),
        ("reset", "broken", None),
        ("silent", "broken", None),
        ("never", "timeout", None),
    ],
)
def test_a_receiver_that_fails_is_tried_again_under_the_same_id(
    outbox: RedisOutbox,
    end: Callable[..., list[str]],
    bad: bytes | str,
    error: str,
    response: int | None,
) -> None:
    with receiving(bad, bad, OK) as receiver:
        (job,) = end(receiver.url)
        with courier(outbox, schedule_s=(0, 0.2, 3, 4, 5, 6, 7, 60), timeout_s=0.4):
            failed = tried(outbox, job)
            delivery = settled(outbox, job)
    assert (failed.error, failed.response) == (error, response)
    assert (delivery.status, delivery.attempts, delivery.error) == (DeliveryStatus.DELIVERED, 3, None)
    assert {got.headers["webhook-id"] for got in receiver.got} == {delivery.id}
    assert len({verified(got)["data"]["id"] for got in receiver.got}) == 1


def test_a_receiver_that_asks_for_time_gets_it(outbox: RedisOutbox, end: Callable[..., list[str]]) -> None:
    with receiving(status(429, "Retry-After: 60")) as receiver, courier(outbox):
        (job,) = end(receiver.url)
        waiting = tried(outbox, job)
        time.sleep(0.5)
        assert len(receiver.got) == 1
    assert waiting.due_at is not None
    assert waiting.attempted_at is not None
    assert waiting.due_at - waiting.attempted_at >= 60


def test_a_delivery_that_nobody_takes_fails_in_the_end(
    outbox: RedisOutbox, end: Callable[..., list[str]]
) -> None:
    with receiving(status(503)) as receiver, courier(outbox, schedule_s=(0, 0.1, 0.2)):
        (job,) = end(receiver.url)
        delivery = settled(outbox, job)
    assert (delivery.status, delivery.response) == (DeliveryStatus.FAILED, 503)
    assert 1 <= len(receiver.got) <= 4


def test_a_receiver_of_ten_gigabytes_is_told_and_left(
    outbox: RedisOutbox, end: Callable[..., list[str]]
) -> None:
    with receiving("endless") as receiver, courier(outbox, timeout_s=5):
        (job,) = end(receiver.url)
        assert settled(outbox, job).status is DeliveryStatus.DELIVERED
        assert receiver.sent_bytes < 50_000_000


def test_a_410_ends_the_messages_to_that_url(outbox: RedisOutbox, end: Callable[..., list[str]]) -> None:
    with receiving(status(410)) as receiver, courier(outbox):
        (job,) = end(receiver.url)
        gone = settled(outbox, job)
        assert (gone.status, gone.response, gone.error) == (DeliveryStatus.FAILED, 410, "gone")
        (later,) = end(receiver.url)
        assert settled(outbox, later).attempts == 0
        assert len(receiver.got) == 1
        receiver.answers = [OK]
        outbox.again(later_id := outbox.of(later)[0].id)
        receiver.wait_for(2)
    assert outbox.get(later_id).status is DeliveryStatus.DELIVERED


def test_a_receiver_that_was_down_is_told_when_it_is_back(
    outbox: RedisOutbox, end: Callable[..., list[str]], client: redis.Redis
) -> None:
    """All that failed meanwhile goes out as soon as one of it arrived, though it was due in ten minutes."""
    with receiving() as down:
        port = down.server_address[1]
    with courier(outbox, schedule_s=(*(step / 2 for step in range(8)), 600)):
        jobs = end(f"http://127.0.0.1:{port}/hook", 6)
        for job in jobs:
            wait_until(outbox, job, _rests, 15)
        with receiving(port=port) as back:
            outbox.again(outbox.of(jobs[0])[0].id)
            for job in jobs:
                assert settled(outbox, job).status is DeliveryStatus.DELIVERED
    assert len({got.headers["webhook-id"] for got in back.got}) == len(jobs)
    assert client.keys(f"{LedgerKey.FAILING}*") == []


def test_a_receiver_that_never_answers_holds_up_no_other(
    outbox: RedisOutbox, end: Callable[..., list[str]]
) -> None:
    with receiving("never") as slow, receiving() as quick, courier(outbox, timeout_s=10):
        end(slow.url, 100)
        slow.wait_for(1)
        jobs = end(quick.url, 50)
        for job in jobs:
            assert settled(outbox, job, within_s=8).status is DeliveryStatus.DELIVERED
        assert slow.connections <= 4


def test_a_host_that_became_private_is_not_called(outbox: RedisOutbox, end: Callable[..., list[str]]) -> None:
    with receiving() as canary, courier(outbox, hosts=()):
        (job,) = end(canary.url)
        failed = tried(outbox, job)
        assert (failed.error, failed.response) == ("not_allowed", None)
        assert canary.connections == 0


def test_a_message_that_cannot_be_made_is_tried_again(
    outbox: RedisOutbox, end: Callable[..., list[str]]
) -> None:
    broken = [True]

    def body(delivery: Delivery) -> str:
        if broken.pop() if broken else False:
            raise ValueError("a record of another version")
        return body_of(delivery)

    with receiving() as receiver, courier(outbox, body=body):
        (job,) = end(receiver.url)
        assert settled(outbox, job).attempts == 2
    assert len(receiver.got) == 1


class ForgetfulOutbox(RedisOutbox):
    """One whose Redis is away when the first outcome comes."""

    away = 3

    def settle(self, *given: Any, **more: Any) -> DeliveryStatus | None:
        self.away -= 1
        if self.away >= 0:
            raise RedisUnavailable("away")
        return super().settle(*given, **more)


def test_an_outcome_waits_for_redis_and_the_message_is_not_sent_again(
    client: redis.Redis, end: Callable[..., list[str]]
) -> None:
    outbox = ForgetfulOutbox(client)
    with receiving() as receiver, courier(outbox):
        (job,) = end(receiver.url)
        delivery = settled(outbox, job)
    assert (delivery.status, delivery.attempts, len(receiver.got)) == (DeliveryStatus.DELIVERED, 1, 1)


def test_two_couriers_tell_each_once(outbox: RedisOutbox, end: Callable[..., list[str]]) -> None:
    with receiving() as receiver, courier(outbox), courier(outbox):
        jobs = end(receiver.url, 60)
        for job in jobs:
            settled(outbox, job)
    assert len(receiver.got) == len({got.headers["webhook-id"] for got in receiver.got}) == 60


def test_retries_come_a_little_later_by_chance() -> None:
    moments = {delivery_module.later(100) for _ in range(50)}
    assert len(moments) > 40
    assert all(100 <= one <= 110 for one in moments)
