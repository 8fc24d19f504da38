"""The courier: takes deliveries from the outbox, sends them, says what came of it. One to an API process."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from starlette.concurrency import run_in_threadpool

from pixelkiln.fetch import AddressRefused, Answer, CallFailed, Fetcher
from pixelkiln.webhooks.signing import Secrets, signed_headers
from pixelkiln_shared.errors import PixelkilnError, Unavailable
from pixelkiln_shared.ledger.outbox import LEASE_S, SCHEDULE_S, Delivery, Outbox, Word

POLL_S = 0.5  # how long after its end a job is told of, at most, when nothing else is in the way
AWAY_S = 2.0  # until Redis is asked again when it did not answer
SETTLE_AGAIN_S = 0.5  # the same, while an outcome waits to be noted
PLACES = 32  # deliveries in hand in one process
JITTER = 0.1  # a retry comes up to so much later than scheduled, so that many do not come at once
GONE = 410

_log = structlog.get_logger("pixelkiln.webhooks")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of one try, as the outbox wants to know it."""

    word: Word
    response: int | None = None
    error: str = ""
    not_before_s: float = 0.0


class Courier:
    """Delivers until it is stopped. What is in hand then comes back to the outbox by its lease.

    Args:
        body_of: returns the message of a delivery as JSON; runs in a thread.
        schedule_s: seconds after it first failed at which a delivery is tried.
    """

    def __init__(
        self,
        outbox: Outbox,
        fetcher: Fetcher,
        secrets: Secrets,
        body_of: Callable[[Delivery], str],
        *,
        schedule_s: Sequence[float] = SCHEDULE_S,
        poll_s: float = POLL_S,
    ) -> None:
        self._outbox = outbox
        self._fetcher = fetcher
        self._secrets = secrets
        self._body_of = body_of
        self._schedule_s = schedule_s
        self._poll_s = poll_s
        self._in_hand: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Deliver for as long as the process lives; whatever goes wrong, the next round comes."""
        try:
            while True:
                try:
                    more = await self._round()
                except PixelkilnError as error:
                    _log.warning("no deliveries taken", reason=str(error))
                    await asyncio.sleep(AWAY_S)
                    continue
                except Exception:  # noqa: BLE001 - a courier that stops for good tells nobody any more
                    _log.exception("no deliveries taken")
                    more = False
                if not more:
                    await asyncio.sleep(self._poll_s)
        finally:
            for task in self._in_hand:
                task.cancel()
            await asyncio.gather(*self._in_hand, return_exceptions=True)
            await self._fetcher.aclose()

    async def _round(self) -> bool:
        """Begin what is due, as far as there is room; returns whether more may be."""
        room = PLACES - len(self._in_hand)
        if room <= 0:
            await asyncio.wait(self._in_hand, timeout=self._poll_s, return_when=asyncio.FIRST_COMPLETED)
            return True
        taken = await run_in_threadpool(self._outbox.claim, room)
        for delivery in taken:
            task = asyncio.create_task(self._deliver(delivery))
            self._in_hand.add(task)
            task.add_done_callback(self._in_hand.discard)
        if taken:  # the next ones of the same receiver, as soon as one of these has ended
            await asyncio.wait(self._in_hand, timeout=self._poll_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(taken)

    async def _deliver(self, delivery: Delivery) -> None:
        with contextlib.suppress(PixelkilnError):  # Redis is away: the lease ends and it is tried again
            try:
                came = await self._send(delivery)
            except PixelkilnError:
                raise
            except Exception:  # noqa: BLE001 - no receiver and no record may end the courier
                _log.exception("a delivery failed", id=delivery.id)
                came = _Outcome(Word.FAILED, error="internal")
            told = {"of": delivery.event, "word": came.word, "status": came.response, "fault": came.error}
            _log.info("told", id=delivery.id, **told)
            await self._settle(delivery, came)

    async def _settle(self, delivery: Delivery, came: _Outcome) -> None:
        """Note what came of a try, and insist for as long as the lease: till then it is in nobody's hand."""
        until = time.monotonic() + LEASE_S
        while True:
            try:
                await run_in_threadpool(
                    self._outbox.settle,
                    delivery,
                    came.word,
                    response=came.response,
                    error=came.error,
                    not_before_s=came.not_before_s,
                    schedule_s=[later(one) for one in self._schedule_s],
                )
                return
            except Unavailable:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(SETTLE_AGAIN_S)

    async def _send(self, delivery: Delivery) -> _Outcome:
        body = await run_in_threadpool(self._body_of, delivery)
        try:
            secrets = self._secrets.of(delivery.url)
            headers = signed_headers(secrets, delivery.id, body, datetime.now(UTC))
            headers |= {"Content-Type": "application/json", "User-Agent": "Pixelkiln-Webhooks"}
            answer = await self._fetcher.post(delivery.url, body.encode(), headers)
        except AddressRefused:
            return _Outcome(Word.FAILED, error="not_allowed")
        except CallFailed as error:
            return _Outcome(Word.FAILED, error=error.word)
        return _judged(answer)


def _judged(answer: Answer) -> _Outcome:
    status = answer.status
    if 200 <= status < 300:
        return _Outcome(Word.DELIVERED, status)
    if status == GONE:
        return _Outcome(Word.GONE, status, "gone")
    fault = "redirect" if 300 <= status < 400 else "status"
    return _Outcome(Word.FAILED, status, fault, answer.retry_after_s)


def later(seconds: float) -> float:
    """Return a moment of the schedule, moved back a little by chance."""
    return seconds * (1 + random.random() * JITTER)  # noqa: S311 - nobody gains from guessing it
