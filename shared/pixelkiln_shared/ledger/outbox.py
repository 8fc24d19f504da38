"""The outbox: what receivers are told about jobs and groups that ended, kept until they were told.

The move that ends a job writes its delivery in the same atomic script, so none is lost and none made up. Any
process may be a courier: it claims deliveries under a lease, tries them, and says what came of it. A courier
that is killed gives its deliveries back by the end of the lease, so a receiver may be told twice, under the
same id. Deliveries to one receiver (an origin) are handed to a few couriers at a time, and to one alone while
it fails: a dead receiver is in nobody's way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, cast

import redis

from pixelkiln_shared.errors import NotFound
from pixelkiln_shared.keys import LedgerKey
from pixelkiln_shared.ledger.connection import redis_errors
from pixelkiln_shared.ledger.scripts import Scripts
from pixelkiln_shared.ledger.submitting import milliseconds

LEASE_S = 30.0  # a try takes 15 s at most; a killed courier's deliveries are tried again after this
MOST_AT_A_RECEIVER = 4  # tries at one receiver at a time, in the whole fleet
LOOK_AGAIN_S = 45.0  # while a receiver is away one delivery looks after it so often ...
LOOK_FOR_S = 3_600.0  # ... when it is less than an hour old: a return is noticed within a minute
MOST_OF_A_SUBJECT = 100  # a job that was retried often shows the newest deliveries

# When a delivery is tried, in seconds after it first failed: the example schedule of the Standard Webhooks
# specification, section "Deliverability and reliability" (its column "Time since start").
SCHEDULE_S = (0, 5, 305, 2_105, 9_305, 27_305, 63_305, 113_705, 185_705, 272_105)


class DeliveryStatus(StrEnum):
    """Where a delivery stands; `failed` is no longer tried unless somebody asks."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Word(StrEnum):
    """What came of one try. `gone`: the receiver wants no more of this (410)."""

    DELIVERED = "delivered"
    GONE = "gone"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One message to one receiver. `subject` is the id of a job or group; times are Unix seconds by Redis.

    `due_at` is when it is tried next, None while it is tried and after its end. `response` is the last HTTP
    status, `error` a short word for what went wrong.
    """

    id: str
    event: str
    subject: str
    tenant: str
    url: str
    status: DeliveryStatus
    sequence: int
    created_at: float
    attempts: int = 0
    attempted_at: float | None = None
    due_at: float | None = None
    response: int | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryPage:
    """A page of a listing, newest first; `after` is the sequence to go on from, None at the end."""

    deliveries: tuple[Delivery, ...]
    after: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OutboxState:
    """How receivers do, of all tenants.

    `failing` receivers (origins) failed the last time; `gone` URLs answered 410 and are left alone for a day;
    `late_s` is for how long the next message is due: more than seconds means that no courier is at work.
    """

    failing: int
    gone: int
    late_s: float


class Outbox(Protocol):
    """The moves. Every one raises `RedisUnavailable` when Redis does not answer."""

    def claim(self, limit: int, *, lease_s: float = LEASE_S) -> list[Delivery]:
        """Take up to `limit` deliveries that are due. Also forgets those whose time is over."""
        ...

    def settle(
        self,
        delivery: Delivery,
        word: Word,
        *,
        response: int | None = None,
        error: str = "",
        not_before_s: float = 0.0,
        schedule_s: Sequence[float] = SCHEDULE_S,
    ) -> DeliveryStatus | None:
        """Say what came of a try; a failed one is tried again as the schedule says, or has failed for good.

        `not_before_s` is for how long the receiver asked to be left alone. Returns None when another try has
        begun meanwhile: then this one changes nothing.
        """
        ...

    def again(self, delivery_id: str) -> Delivery:
        """Make a delivery due now, and follow the whole schedule once more; also lifts a receiver's 410.

        Raises:
            NotFound: no such delivery.
        """
        ...

    def get(self, delivery_id: str) -> Delivery:
        """Return a delivery.

        Raises:
            NotFound: no such delivery.
        """
        ...

    def of(self, subject: str) -> list[Delivery]:
        """Return the deliveries of a job or group that still has a record, newest first."""
        ...

    def list(
        self,
        tenant: str,
        *,
        status: DeliveryStatus | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> DeliveryPage:
        """List a tenant's deliveries, newest first. Bounded work a page."""
        ...

    def counts(self, tenant: str) -> Mapping[DeliveryStatus, int]:
        """Return how many deliveries a tenant has in each state."""
        ...

    def state(self) -> OutboxState:
        """Return how receivers do; a few steps of Redis, however many there are."""
        ...


class RedisOutbox:
    """Implements `Outbox`. Safe for threads, as its client is.

    Args:
        client: as the ledger's.
        clock: Lua source that replaces Redis's `TIME`; for tests only.
    """

    def __init__(self, client: redis.Redis, *, clock: str | None = None) -> None:
        self._client = client
        self._scripts = Scripts(client, retention_s=0, clock=clock)

    def claim(self, limit: int, *, lease_s: float = LEASE_S) -> list[Delivery]:
        """Take up to `limit` deliveries that are due."""
        with redis_errors():
            found = self._scripts.run("post_claim", limit, milliseconds(lease_s), MOST_AT_A_RECEIVER)
        return [_delivery(name, flat) for name, flat in found]

    def settle(
        self,
        delivery: Delivery,
        word: Word,
        *,
        response: int | None = None,
        error: str = "",
        not_before_s: float = 0.0,
        schedule_s: Sequence[float] = SCHEDULE_S,
    ) -> DeliveryStatus | None:
        """Say what came of a try; None when another one has begun meanwhile."""
        tries = [round(seconds * 1_000) for seconds in schedule_s]
        waits = (milliseconds(LOOK_AGAIN_S), milliseconds(LOOK_FOR_S), round(not_before_s * 1_000))
        told = "" if response is None else response
        with redis_errors():
            status = self._scripts.run(
                "post_settle", delivery.id, delivery.attempts, word, told, error, *waits, *tries
            )
        return DeliveryStatus(status) if status else None

    def again(self, delivery_id: str) -> Delivery:
        """Make a delivery due now.

        Raises:
            NotFound: no such delivery.
        """
        with redis_errors():
            found = self._scripts.run("post_again", delivery_id)
        if not found:
            raise missing(delivery_id)
        return self.get(delivery_id)

    def get(self, delivery_id: str) -> Delivery:
        """Return a delivery.

        Raises:
            NotFound: no such delivery.
        """
        with redis_errors():
            fields = cast(dict[str, str], self._client.hgetall(LedgerKey.DELIVERY + delivery_id))
        if not fields:
            raise missing(delivery_id)
        return _of_fields(delivery_id, fields)

    def of(self, subject: str) -> list[Delivery]:
        """Return the deliveries of a job or group that still has a record, newest first."""
        owner = LedgerKey.GROUP if subject.startswith("grp_") else LedgerKey.JOB
        with redis_errors():
            count = int(cast(str | None, self._client.hget(owner + subject, "notified")) or 0)
            numbers = range(count, max(0, count - MOST_OF_A_SUBJECT), -1)
            ids = [delivery_id(subject, number) for number in numbers]
            pipeline = self._client.pipeline(transaction=False)
            for one in ids:
                pipeline.hgetall(LedgerKey.DELIVERY + one)
            found = pipeline.execute()
        return [_of_fields(one, fields) for one, fields in zip(ids, found, strict=True) if fields]

    def list(
        self,
        tenant: str,
        *,
        status: DeliveryStatus | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> DeliveryPage:
        """List a tenant's deliveries, newest first."""
        wanted = list(DeliveryStatus) if status is None else [status]
        names = [f"{LedgerKey.DELIVERIES}{tenant}:{one}" for one in wanted]
        newest = "+inf" if after is None else f"({after}"
        with redis_errors():
            found = self._scripts.run("post_list", newest, limit, *names)
        page = tuple(_delivery(name, flat) for name, flat in found[:limit])
        return DeliveryPage(deliveries=page, after=page[-1].sequence if len(found) > limit else None)

    def counts(self, tenant: str) -> Mapping[DeliveryStatus, int]:
        """Return how many deliveries a tenant has in each state."""
        pipeline = self._client.pipeline(transaction=False)
        for status in DeliveryStatus:
            pipeline.zcard(f"{LedgerKey.DELIVERIES}{tenant}:{status}")
        with redis_errors():
            return dict(zip(DeliveryStatus, pipeline.execute(), strict=True))

    def state(self) -> OutboxState:
        """Return how receivers do."""
        with redis_errors():
            failing, gone, late_ms = self._scripts.run("post_state")
        return OutboxState(failing=failing, gone=gone, late_s=late_ms / 1_000)


def delivery_id(subject: str, number: int) -> str:
    """Return the id of the n-th delivery of a job or group; it is also the `webhook-id`."""
    return f"msg_{subject[-26:]}_{number}"


def missing(name: str) -> NotFound:
    """Return the error for an id nobody knows."""
    return NotFound(f"no delivery {name[:64]}")


def _delivery(name: str, flat: Sequence[str]) -> Delivery:
    return _of_fields(name, dict(zip(flat[0::2], flat[1::2], strict=True)))


def _of_fields(name: str, fields: Mapping[str, Any]) -> Delivery:
    return Delivery(
        id=name,
        event=fields["event"],
        subject=fields["subject"],
        tenant=fields["tenant"],
        url=fields["url"],
        status=DeliveryStatus(fields["status"]),
        sequence=int(fields["sequence"]),
        created_at=int(fields["created_at"]) / 1_000,
        attempts=int(fields["attempts"]),
        attempted_at=_seconds(fields.get("attempted_at")),
        due_at=_seconds(fields.get("due_at")),
        response=int(fields["response"]) if fields.get("response") else None,
        error=fields.get("error") or None,
    )


def _seconds(value: str | None) -> float | None:
    return None if value is None else int(value) / 1_000
