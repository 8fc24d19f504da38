"""Who may ask, and for what: API keys, the gallery's session, and the guard against other people's web pages.

The key of the settings may do everything, for the default tenant; those of the key ring, what they say.

Without a key in the settings the API serves loopback only and lets everybody in. There the danger is a
page in the user's own browser: a request must carry one of our own host names (DNS rebinding does not), and
none that changes anything may come from elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pixelkiln.api.errors import CrossOrigin, RateLimited
from pixelkiln.api.limits import Buckets
from pixelkiln.api_keys import DEFAULT_TENANT, ApiKey, KeyRing, KeyScope
from pixelkiln_shared.errors import Forbidden, Unauthorized
from pixelkiln_shared.settings import Settings

SESSION_COOKIE = "pixelkiln_session"
SESSION_S = 7 * 86_400
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_OPEN = frozenset({"/healthz", "/readyz", "/login"})
_OPEN_BELOW = ("/static/", "/v1/objects/")  # file links carry their own signature
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OWNER = "owner"  # the id of the settings' key; those of the ring are longer
FAILURES_PER_MINUTE = 60  # wrong keys from one address


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `credential` names the key without being it: the scope of idempotency keys."""

    tenant: str = DEFAULT_TENANT
    credential: str = "local"
    scopes: frozenset[KeyScope] = frozenset(KeyScope)


class Gate:
    """Knows the keys (as hashes) and signs the gallery's sessions."""

    def __init__(self, settings: Settings, secret: bytes, ring: KeyRing) -> None:
        self.ring = ring
        self._failures, self._requests = Buckets(), Buckets()
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        self.closed = bool(key)
        self._digest = hashlib.sha256(key.encode()).digest()
        self._owner = ApiKey(
            id=_OWNER,
            name=_OWNER,
            tenant=DEFAULT_TENANT,
            scopes=frozenset(KeyScope),
            sha256=self._digest.hex(),
            created_at=datetime.now(UTC),
        )
        # Sessions end with the key they were opened with.
        self._signer = hmac.new(secret, b"session" + self._digest, hashlib.sha256).digest()
        public = urlsplit(settings.public_url or "")
        self._public = public.netloc
        self._hosts = LOOPBACK | {settings.host} | ({public.hostname} if public.hostname else set())

    def key_of(self, token: str) -> ApiKey | None:
        """Return the key that a text is, None for a wrong one; compares in constant time.

        Raises:
            RedisUnavailable: the keys have not been read yet.
        """
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        owner = hmac.compare_digest(digest, self._digest) and self.closed
        found = self.ring.find(token)
        return self._owner if owner else found

    def session(self, key: ApiKey) -> str:
        """Return a fresh session cookie's value for whoever has this key."""
        told = f"{int(time.time()) + SESSION_S}.{key.id}"
        return f"{told}.{self._signature(told)}"

    def caller(self, headers: Headers, address: str) -> Caller:
        """Return who asks.

        Raises:
            Unauthorized: no valid key, no valid session.
            RateLimited: a valid key asks too often, or too many wrong ones come from an address.
            RedisUnavailable: the keys have not been read yet.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Compare even when there is nothing to compare: a missing key takes as long as a wrong one.
        key = self.key_of(token.strip())
        if key is not None and scheme.lower() == "bearer":
            credential = key.id if key is not self._owner else self._digest.hex()[:16]
        elif not self.closed:
            return Caller()
        elif (key := self._of_session(_cookie(headers))) is not None:
            credential = f"session-{key.id}"
        else:
            if token:
                self.note_failure(address)
            raise Unauthorized("send the API key as `Authorization: Bearer KEY`")
        if key.per_minute is not None:
            wait_s = self._requests.take(key.id, key.per_minute)
            if wait_s > 0:
                raise RateLimited(f"this key may ask {key.per_minute} times a minute", retry_after_s=wait_s)
        return Caller(key.tenant, credential, key.scopes)

    def note_failure(self, address: str) -> None:
        """Count a wrong key.

        Raises:
            RateLimited: too many come from this address.
        """
        if (wait_s := self._failures.take(address, FAILURES_PER_MINUTE)) > 0:
            raise RateLimited("too many wrong keys come from this address", retry_after_s=wait_s)

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

    def _signature(self, told: str) -> str:
        return hmac.new(self._signer, told.encode(), hashlib.sha256).hexdigest()

    def _of_session(self, cookie: str) -> ApiKey | None:
        """Return the key that a session was opened with, as long as both are valid."""
        told, _, signature = cookie.rpartition(".")
        genuine = hmac.compare_digest(signature.encode(), self._signature(told).encode())
        expires, _, identity = told.partition(".")
        if not genuine or not expires.isdigit() or int(expires) <= time.time():
            return None
        return self._owner if identity == _OWNER else self.ring.get(identity)


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
                caller = self._gate.caller(headers, address_of(scope))
                needed = scope_of(scope["method"], path)
                if needed not in caller.scopes:
                    raise Forbidden(f"this key may not {needed}")
                scope.setdefault("state", {})["caller"] = caller
            except Unauthorized:
                if scope["method"] != "GET" or "text/html" not in headers.get("accept", ""):
                    raise
                login = RedirectResponse(f"/login?next={quote(path, safe='/')}", status_code=303)
                await login(scope, receive, send)
                return
        await self._app(scope, receive, send)


def address_of(scope: Scope) -> str:
    """Return the address a request comes from: behind a proxy, the proxy's."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def scope_of(method: str, path: str) -> KeyScope:
    """Return what a key must be for, to ask this."""
    if method in _SAFE:
        return KeyScope.READ
    return KeyScope.ADMIN if path.startswith("/v1/workers/") else KeyScope.SUBMIT


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
