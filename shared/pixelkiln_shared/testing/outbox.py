"""`MemoryOutbox`: the outbox's moves in plain Python, for tests; the contract suite holds it to Redis's."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pixelkiln_shared.keys import DELIVERED_S, FAILING_S, GONE_S, UNDELIVERED_S
from pixelkiln_shared.ledger.outbox import (
    LEASE_S,
    LOOK_AGAIN_S,
    LOOK_FOR_S,
    MOST_AT_A_RECEIVER,
    MOST_OF_A_SUBJECT,
    SCHEDULE_S,
    Delivery,
    DeliveryPage,
    DeliveryStatus,
    OutboxState,
    Word,
    delivery_id,
    missing,
)


@dataclass(slots=True)
class _Letter:
    shown: Delivery
    since: float | None = None  # when a try first failed
    aloft_until: float | None = None
    absent: bool = False  # its receiver had failed before and taken nothing since
    ended_at: float = 0.0


class MemoryOutbox:
    """Implements the `Outbox` protocol."""

    def __init__(self, clock: Callable[[], float], lock: threading.RLock) -> None:
        self._clock = clock
        self._lock = lock
        self._letters: dict[str, _Letter] = {}
        self._failing: dict[str, float] = {}
        self._gone: dict[tuple[str, str], float] = {}
        self._numbers: dict[str, int] = {}
        self._posted = 0

    def post(self, event: str, subject: str, tenant: str, url: str) -> None:
        """Write a delivery; the move that ends a job or group does this."""
        now = self._clock()
        number = self._numbers[subject] = self._numbers.get(subject, 0) + 1
        self._posted += 1
        shown = Delivery(
            id=delivery_id(subject, number),
            event=event,
            subject=subject,
            tenant=tenant,
            url=url,
            status=DeliveryStatus.PENDING,
            sequence=self._posted,
            created_at=now,
            due_at=now,
        )
        self._letters[shown.id] = _Letter(shown)

    def claim(self, limit: int, *, lease_s: float = LEASE_S) -> list[Delivery]:
        """Take up to `limit` deliveries that are due."""
        with self._lock:
            now = self._clock()
            self._forget(now)
            for letter in self._letters.values():
                if letter.aloft_until is not None and letter.aloft_until <= now:
                    letter.aloft_until = None
                    letter.shown = replace(letter.shown, due_at=now)
            taken: list[Delivery] = []
            due = [one for one in self._waiting() if (one.shown.due_at or 0) <= now]
            for receiver in dict.fromkeys(_receiver(one.shown.url) for one in due):
                most = 1 if self._is_failing(receiver) else MOST_AT_A_RECEIVER
                room = min(most - self._aloft(receiver), limit - len(taken))
                mine = [one for one in due if _receiver(one.shown.url) == receiver]
                taken += [one.shown for one in mine[: max(0, room)] if self._take(one, now, lease_s)]
            return taken

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
        with self._lock:
            now = self._clock()
            letter = self._letters.get(delivery.id)
            if letter is None or letter.aloft_until is None or letter.shown.attempts != delivery.attempts:
                return None
            letter.aloft_until = None
            receiver = _receiver(delivery.url)
            letter.shown = replace(letter.shown, response=response, error=error or None)
            if word is Word.FAILED:
                letter.absent = self._is_failing(receiver)
                self._failing.setdefault(receiver, now)
                letter.since = now if letter.since is None else letter.since
                due = self._next_try(letter, letter.since, receiver, schedule_s)
                if due is None:
                    self._close(letter, DeliveryStatus.FAILED)
                else:
                    letter.shown = replace(letter.shown, due_at=max(due, now + not_before_s))
                return letter.shown.status
            self._failing.pop(receiver, None)
            delivered = word is Word.DELIVERED
            self._close(letter, DeliveryStatus.DELIVERED if delivered else DeliveryStatus.FAILED)
            if not delivered:
                self._gone[delivery.tenant, delivery.url] = now + GONE_S
            for other in filter(lambda one: one.absent, self._waiting(receiver)):
                other.shown = replace(other.shown, due_at=min(now, other.shown.due_at or now))
            return letter.shown.status

    def again(self, delivery_id: str) -> Delivery:
        """Make a delivery due now; raises `NotFound`."""
        with self._lock:
            letter = self._letters.get(delivery_id)
            if letter is None:
                raise missing(delivery_id)
            letter.since, letter.absent = None, False
            self._gone.pop((letter.shown.tenant, letter.shown.url), None)
            due = None if letter.aloft_until is not None else self._clock()
            letter.shown = replace(letter.shown, status=DeliveryStatus.PENDING, due_at=due)
            return letter.shown

    def get(self, delivery_id: str) -> Delivery:
        """Return a delivery; raises `NotFound`."""
        with self._lock:
            if delivery_id not in self._letters:
                raise missing(delivery_id)
            return self._letters[delivery_id].shown

    def of(self, subject: str) -> list[Delivery]:
        """Return the deliveries of a job or group, newest first."""
        mine = [one.shown for one in self._letters.values() if one.shown.subject == subject]
        return sorted(mine, key=lambda one: -one.sequence)[:MOST_OF_A_SUBJECT]

    def list(
        self,
        tenant: str,
        *,
        status: DeliveryStatus | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> DeliveryPage:
        """List a tenant's deliveries, newest first."""
        matching = [
            one.shown
            for one in self._letters.values()
            if one.shown.tenant == tenant
            and (status is None or one.shown.status is status)
            and (after is None or one.shown.sequence < after)
        ]
        matching.sort(key=lambda one: -one.sequence)
        more = len(matching) > limit
        return DeliveryPage(
            deliveries=tuple(matching[:limit]), after=matching[limit - 1].sequence if more else None
        )

    def counts(self, tenant: str) -> Mapping[DeliveryStatus, int]:
        """Return how many deliveries a tenant has in each state."""
        mine = [one.shown.status for one in self._letters.values() if one.shown.tenant == tenant]
        return {status: mine.count(status) for status in DeliveryStatus}

    def state(self) -> OutboxState:
        """Return how receivers do."""
        now = self._clock()
        due = [one.shown.due_at or now for one in self._waiting()]
        return OutboxState(
            failing=sum(map(self._is_failing, self._failing)),
            gone=sum(until > now for until in self._gone.values()),
            late_s=max(0.0, now - min(due, default=now)),
        )

    def _waiting(self, receiver: str | None = None) -> Sequence[_Letter]:
        waiting = [
            one
            for one in self._letters.values()
            if one.shown.status is DeliveryStatus.PENDING
            and one.aloft_until is None
            and receiver in (None, _receiver(one.shown.url))
        ]
        return sorted(waiting, key=lambda one: one.shown.due_at or 0)

    def _aloft(self, receiver: str) -> int:
        flying = [one for one in self._letters.values() if one.aloft_until is not None]
        return sum(_receiver(one.shown.url) == receiver for one in flying)

    def _is_failing(self, receiver: str) -> bool:
        return self._clock() - self._failing.get(receiver, float("-inf")) < FAILING_S

    def _take(self, letter: _Letter, now: float, lease_s: float) -> bool:
        if self._gone.get((letter.shown.tenant, letter.shown.url), 0) > now:
            letter.shown = replace(letter.shown, error="gone", response=None)
            self._close(letter, DeliveryStatus.FAILED)
            return False
        letter.aloft_until = now + lease_s
        attempts = letter.shown.attempts + 1
        letter.shown = replace(letter.shown, attempts=attempts, attempted_at=now, due_at=None)
        return True

    def _next_try(
        self, letter: _Letter, since: float, receiver: str, schedule_s: Sequence[float]
    ) -> float | None:
        now = self._clock()
        due = next((since + one for one in schedule_s if since + one > now), None)
        others = self._waiting(receiver)
        looked_after = self._aloft(receiver) > 0 or any(
            one is not letter and (one.shown.due_at or 0) <= now + LOOK_AGAIN_S for one in others
        )
        if due is not None and letter.absent and not looked_after and now - since < LOOK_FOR_S:
            due = min(due, now + LOOK_AGAIN_S)
        return due

    def _close(self, letter: _Letter, status: DeliveryStatus) -> None:
        letter.ended_at = self._clock()
        letter.shown = replace(letter.shown, status=status, due_at=None)

    def _forget(self, now: float) -> None:
        for name, one in list(self._letters.items()):
            kept_s = DELIVERED_S if one.shown.status is DeliveryStatus.DELIVERED else UNDELIVERED_S
            if one.shown.status is not DeliveryStatus.PENDING and one.ended_at + kept_s <= now:
                del self._letters[name]


def _receiver(url: str) -> str:
    match = re.match(r"[a-z]+://[^/?#]*", url, re.IGNORECASE)
    return (match[0] if match else url).lower()
