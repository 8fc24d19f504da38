"""Who may ask: the API key, the gallery's session, and the guard against other people's web pages.

Without a key the API serves loopback only; there the danger is a web page in the user's own browser. So a
request must carry one of our own host names (DNS rebinding does not), and none that changes anything may come
from elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pixelkiln.api.errors import CrossOrigin
from pixelkiln_shared.errors import Unauthorized
from pixelkiln_shared.settings import Settings

SESSION_COOKIE = "pixelkiln_session"
SESSION_S = 7 * 86_400
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_OPEN = frozenset({"/healthz", "/readyz", "/login"})
_OPEN_BELOW = ("/static/", "/v1/objects/")  # file links carry their own signature
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `credential` names the key without being it: the scope of idempotency keys."""

    tenant: str = "default"
    credential: str = "local"


class Gate:
    """Knows the key (as a hash) and signs the gallery's sessions."""

    def __init__(self, settings: Settings, secret: bytes) -> None:
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        self.closed = bool(key)
        self._digest = hashlib.sha256(key.encode()).digest()
        # Sessions end with the key they were opened with.
        self._signer = hmac.new(secret, b"session" + self._digest, hashlib.sha256).digest()
        public = urlsplit(settings.public_url or "")
        self._public = public.netloc
        self._hosts = LOOPBACK | {settings.host} | ({public.hostname} if public.hostname else set())

    def right_key(self, key: str) -> bool:
        """Compare with the configured key, in constant time."""
        return hmac.compare_digest(hashlib.sha256(key.encode("utf-8", "replace")).digest(), self._digest)

    def session(self) -> str:
        """Return a fresh session cookie's value."""
        expires = str(int(time.time()) + SESSION_S)
        return f"{expires}.{self._signature(expires)}"

    def caller(self, headers: Headers) -> Caller:
        """Return who asks.

        Raises:
            Unauthorized: no valid key, no valid session.
        """
        if not self.closed:
            return Caller()
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Compare even when there is nothing to compare: a missing key takes as long as a wrong one.
        if self.right_key(key.strip()) and scheme.lower() == "bearer":
            return Caller(credential=self._digest.hex()[:16])
        if self._valid_session(_cookie(headers)):
            return Caller(credential="session")
        raise Unauthorized("send the API key as `Authorization: Bearer KEY`")

    def check_origin(self, method: str, headers: Headers) -> None:
        """Refuse what a foreign page makes the user's browser send.

        Raises:
            CrossOrigin: a foreign host name on an open server, or a change asked for by another origin.
        """
        host = headers.get("host", "")
        if not self.closed and _hostname(host) not in self._hosts:
            raise CrossOrigin("this server answers on its own host names only; set PIXELKILN_PUBLIC_URL")
        if method in _SAFE or "authorization" in headers:
            return
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        foreign_site = site is not None and site not in {"same-origin", "none"}
        if foreign_site or (origin is not None and _netloc(origin) not in {host, self._public} - {""}):
            raise CrossOrigin("changes are not accepted from other sites")

    def _signature(self, expires: str) -> str:
        return hmac.new(self._signer, expires.encode(), hashlib.sha256).hexdigest()

    def _valid_session(self, cookie: str) -> bool:
        expires, _, signature = cookie.partition(".")
        genuine = hmac.compare_digest(signature.encode(), self._signature(expires).encode())
        return genuine and expires.isdigit() and int(expires) > time.time()


class AuthGuard:
    """ASGI middleware: decides before routing, so that a stranger learns nothing, not even what exists."""

    def __init__(self, app: ASGIApp, *, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass; pages for people lead to the login form instead of an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        self._gate.check_origin(scope["method"], headers)
        if path not in _OPEN and not path.startswith(_OPEN_BELOW):
            try:
                scope.setdefault("state", {})["caller"] = self._gate.caller(headers)
            except Unauthorized:
                if scope["method"] != "GET" or "text/html" not in headers.get("accept", ""):
                    raise
                login = RedirectResponse(f"/login?next={quote(path, safe='/')}", status_code=303)
                await login(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


CurrentCaller = Annotated[Caller, Depends(_caller)]


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _cookie(headers: Headers) -> str:
    """Return the session's cookie; those of other programs on this host name may be of any form."""
    return cookie_parser(headers.get("cookie", "")).get(SESSION_COOKIE, "")
