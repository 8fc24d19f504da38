"""uvicorn's HTTP protocol with limits: a slow or idle client holds a socket for a while, not for ever."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 30.0  # from the connection, or from the first byte of a further request, to the end of its headers
QUIET_S = 1.0  # a connection without a request, and silent for so long, makes room for a new one
RETRY_AFTER_S = 2

_FULL = json.dumps(
    {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "the server holds as many connections as it can; try again soon",
        "code": "unavailable",
        "errors": [],
    }
).encode("ascii")
_TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
    b"Retry-After: %d\r\nContent-Length: %d\r\n\r\n%b" % (RETRY_AFTER_S, len(_FULL), _FULL)
)


class HeadTimeoutProtocol(H11Protocol):
    """Closes a connection whose request line and headers do not arrive in `HEAD_S` seconds.

    With `limit_concurrency` connections open, a new one takes the place of the one that has been silent
    longest between requests, or is answered with 503. uvicorn itself would count the silent ones in.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _heard_at: float = 0.0

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._most, self.limit_concurrency = self.limit_concurrency, None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head, if there is room for one more connection."""
        super().connection_made(transport)
        self._heard_at = self.loop.time()
        if self._most is None or len(self.connections) <= self._most or self._displace():
            self._arm()
        else:
            transport.write(_TURNED_AWAY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once a head is complete, begin again with the next."""
        if self.transport.is_closing():
            return
        self._heard_at = self.loop.time()
        super().data_received(data)
        if not self._idle:
            self._disarm()
        elif self._head_timer is None:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._expire)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _displace(self) -> bool:
        """Close the connection that has been silent longest, if any may be; whether there is room now."""
        alive = [one for one in self.connections if not one.transport.is_closing()]
        if self._most is None or len(alive) <= self._most:
            return True
        silent_since = self.loop.time() - QUIET_S
        idle = [one for one in alive if isinstance(one, HeadTimeoutProtocol) and one._idle]
        oldest = min(idle, key=lambda one: one._heard_at)  # this one is idle, too
        if oldest._heard_at > silent_since:
            return False
        oldest.transport.close()
        return True

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _expire(self) -> None:
        self._head_timer = None
        if self._idle:
            self.transport.close()
