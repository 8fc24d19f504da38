"""How bells are heard: Celery's Redis transport, which lets fall what is no message.

As it comes, one line of garbage in a queue ends the worker process that reads it, and whatever it runs.
"""

from __future__ import annotations

import json
from typing import Any

import structlog
from kombu.transport import TRANSPORT_ALIASES, redis

log = structlog.get_logger(__name__)


class Channel(redis.Channel):
    """Reads one bell after the other."""

    def _brpop_read(self, **options: Any) -> bool | None:
        try:
            heard: bool | None = super()._brpop_read(**options)  # type: ignore[misc]
        except (json.JSONDecodeError, UnicodeDecodeError):  # only what hung there can raise these
            log.warning("what hung in a queue was no message; it is dropped", exc_info=True)
            return True
        return heard


class Transport(redis.Transport):
    """Hands bells to Celery."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        if isinstance(message, dict):
            super()._deliver(message, queue)
        else:
            log.warning("what hung in a queue was no message; it is dropped", queue=queue)


def install() -> None:
    """Let every Celery app of this process hear so; its own URLs stay as they are (`redis:`, `rediss:`)."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
