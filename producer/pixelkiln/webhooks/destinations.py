"""Which URLs a job may name. Looked at when the job is accepted, and again at each delivery (`fetch`)."""

from __future__ import annotations

import time

from pixelkiln.fetch import AddressRefused, Guard, Unresolved
from pixelkiln.validation import wrong
from pixelkiln_shared.settings import Settings

_FRESH_S = 10.0  # the rows of a submit name the same host again and again
_REMEMBERED = 1_000


def guard_of(settings: Settings) -> Guard:
    """Return the guard of these settings."""
    return Guard(settings.webhook_hosts.split(","))


class Destinations:
    """Checks the URLs of requests. Thread-safe."""

    def __init__(self, settings: Settings, guard: Guard | None = None) -> None:
        self._on = bool(settings.webhook_secrets.get_secret_value())
        self._guard = guard or guard_of(settings)
        self._good: dict[str, float] = {}

    def check(self, url: str, at: str) -> None:
        """Refuse a URL that may not be told. A name server that is away refuses none: deliveries look again.

        Args:
            at: JSON pointer of the URL.

        Raises:
            InvalidInput: `webhook_not_allowed`.
        """
        if not self._on:
            raise wrong(
                "webhook_not_allowed", at, "this server sends no webhooks: it has no secret to sign with"
            )
        now = time.monotonic()
        if self._good.get(url, 0.0) > now:
            return
        try:
            self._guard.check(url)
        except AddressRefused as error:
            raise wrong("webhook_not_allowed", at, f"this URL may not be told: {error}") from error
        except Unresolved:
            return
        if len(self._good) >= _REMEMBERED:
            self._good.clear()
        self._good[url] = now + _FRESH_S
