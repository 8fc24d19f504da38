"""The outermost layer: request ids, security headers, a log line a request, a problem for every mishap."""

from __future__ import annotations

import re
import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixelkiln.api.errors import problem
from pixelkiln_shared.errors import PixelkilnError, Unavailable

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
CLIENT_CLOSED = 499  # as nginx logs a client that left in the middle of its request

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

_log = structlog.get_logger("pixelkiln.api")


class Envelope:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; nothing leaves without a request id and the security headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = identity
        began = time.monotonic()
        status = 0

        async def sealed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = identity
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=identity):
            try:
                await self._app(scope, receive, sealed)
            except ClientDisconnect:
                status = status or CLIENT_CLOSED  # nobody is there to be answered
            except Exception as error:
                if status:
                    raise  # too late for another answer
                if isinstance(error, MemoryError):
                    _log.error("memory is short", method=scope["method"], path=scope["path"][:200])
                    error = Unavailable("the server is short of memory; try again soon")
                elif not isinstance(error, PixelkilnError):
                    _log.exception("a request failed", method=scope["method"], path=scope["path"][:200])
                    error = PixelkilnError("the server made a mistake; its log has the request id")
                await problem(error, Request(scope))(scope, receive, sealed)
            finally:
                self._note(scope, status, time.monotonic() - began)

    def _note(self, scope: Scope, status: int, took_s: float) -> None:
        """Log the path only: query strings hold signatures."""
        note = _log.debug if scope["path"] in _QUIET or status < 400 else _log.info
        note(
            "request",
            method=scope["method"],
            path=scope["path"][:200],
            status=status,
            ms=round(took_s * 1_000, 1),
        )
