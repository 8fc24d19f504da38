"""How bells are heard: Celery's Redis transport, which lets fall what is no bell.

As it comes, one line of garbage in a queue ends the worker process that reads it, and whatever it runs. Some
kinds stay in the queue's list of what was not acknowledged, and end the next process, too.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar

import structlog
from celery import signals
from kombu.transport import TRANSPORT_ALIASES, redis

from pixelkiln_shared.errors import RedisUnavailable
from pixelkiln_shared.strays import Strays

log = structlog.get_logger(__name__)

WHY_CHARACTERS = 200  # Celery's reasons quote what they are about


class Client(redis.PrefixedStrictRedis):
    """Remembers what it took from a queue last, for the case that it is no bell: queue and bytes."""

    taken: tuple[str, bytes] | None = None

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """Read an answer of Redis."""
        answer = super().parse_response(connection, command_name, **options)
        if command_name == "BRPOP" and answer:
            queue, message = answer
            self.taken = (queue.decode("utf-8", "replace"), message)
        return answer


class Channel(redis.Channel):
    """Reads one bell after the other."""

    strays: ClassVar[Strays]

    def let_fall(self, why: str) -> None:
        """Put what was taken last on the list of strays."""
        if self.client.taken is None:
            return
        (queue, message), self.client.taken = self.client.taken, None
        log.warning(
            "what hung in a queue was no bell; it is dropped", queue=queue, why=why, size_bytes=len(message)
        )
        try:
            self.strays.keep(queue, message, why[:WHY_CHARACTERS], at=datetime.now(UTC))
        except RedisUnavailable as error:
            log.warning("what was dropped is not kept", error=error.message)

    def _get_client(self) -> Any:
        return partial(Client, global_keyprefix=self.global_keyprefix)

    def _brpop_read(self, **options: Any) -> bool | None:
        self.client.taken = None
        before = self._noted()
        try:
            heard: bool | None = super()._brpop_read(**options)  # type: ignore[misc]
        except Exception as error:
            # kombu counts KeyError among what a lost connection raises
            lost = isinstance(error, self.connection.connection_errors) and not isinstance(error, KeyError)
            if lost or self.client.taken is None:
                raise
            if isinstance(
                error, self.ResponseError
            ):  # Redis takes no writes; the sweep rings again when it does
                log.warning("a bell could not be noted; it is dropped", why=str(error))
                return True
            # whatever Celery's consumer stumbles over; noted as delivered, it would take a place for ever
            self.let_fall(f"{type(error).__name__}: {error}")
            for tag in self._noted() - before:
                self.basic_reject(tag, requeue=False)
            return True
        return heard

    def _noted(self) -> set[str]:
        return set(self.qos._delivered or ())


class Transport(redis.Transport):
    """Hands bells to Celery."""

    Channel = Channel


def install(strays: Strays) -> None:
    """Let every Celery app of this process hear so; its own URLs stay as they are (`redis:`, `rediss:`)."""
    Channel.strays = strays
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"


@signals.task_unknown.connect
def _calls_no_task(message: Any, **_: Any) -> None:
    message.channel.let_fall("it calls no task of a worker")


@signals.task_rejected.connect
def _is_refused(message: Any, exc: Exception | None = None, **_: Any) -> None:
    message.channel.let_fall("it calls nothing" if exc is None else f"{type(exc).__name__}: {exc}")
