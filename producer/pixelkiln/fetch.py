"""The guarded fetcher: the only way this program calls an address that a user gave it.

A name is resolved once, every address it has must be public, and the connection goes to an address that was
checked: a second answer of the name server changes nothing. No proxy, no redirect, no credentials in the URL;
the time and the bytes of an answer are bounded.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import httpx2

TIMEOUT_S = 15.0  # of a whole call: name, connection, answer
MAX_ANSWER_BYTES = 65_536  # more of an answer is not read
ANSWER_S = 1.0  # once the status is known the rest is of no interest
MOST_LEFT_ALONE_S = 3_600.0
RESOLVE_S = 3.0
RESOLVERS = 8  # names asked for at the same time: a slow name server holds no other thread
MAX_ADDRESSES = 3  # of one name that are tried

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>[/?][!$-\[\]-~]*)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}

# Names that mean this machine or network wherever they are asked (RFC 6761, 6762, 8375; ICANN: `internal`).
_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa", "localdomain")

# What is not the public internet: IANA's special-purpose registries, and tunnels that end in an IPv4 address.
_NOT_PUBLIC = [
    ipaddress.ip_network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "168.63.129.16/32",  # a cloud's own services, at an address that looks public
        "224.0.0.0/4", "240.0.0.0/4",
        "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    )
]  # fmt: skip
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")  # all else is unassigned, mapped, NAT64, local or multicast


class AddressRefused(Exception):
    """The URL may not be called; the text says why, without what a name resolved to."""


class Unresolved(Exception):
    """The name server does not answer now; it may later."""


class CallFailed(Exception):
    """The call came to nothing; `word` is one of `timeout`, `connect`, `tls`, `broken`, `unresolved`."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A URL taken apart: host without brackets or final dot, path with its query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def at(self, address: str) -> str:
        """Return the URL with an address in the place of the name."""
        host = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{host}:{self.port}{self.path}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back: the HTTP status, and for how long the other side wants to be left alone."""

    status: int
    retry_after_s: float = 0.0


def place_of(url: str) -> Place:
    """Take a URL apart.

    Raises:
        AddressRefused: not http or https, credentials, a fragment, or characters that parsers disagree about.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise AddressRefused("it must be an http or https URL in ASCII, without credentials and fragment")
    scheme, host, path = found["scheme"].lower(), found["host"].lower().rstrip("."), found["path"] or "/"
    port = int(found["port"] or _PORTS[scheme])
    if not 0 < port < 65_536 or not host:
        raise AddressRefused("its host or port cannot be")
    return Place(scheme=scheme, host=host.strip("[]"), port=port, path=path if path[0] == "/" else f"/{path}")


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to the public internet; tunnels to IPv4 addresses do not."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if ip.version == 6 and ip not in _PUBLIC_V6:
        return False
    return not any(ip in block for block in _NOT_PUBLIC if block.version == ip.version)


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name, in the order to try them.

    Raises:
        OSError: `socket.gaierror`, when it has none or the name server does not answer.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Guard:
    """Decides which URLs may be called, and at which addresses. Safe for threads.

    Args:
        allowed: hosts, or `host:port`, that may be called wherever they are.
        resolver: for tests.
    """

    def __init__(
        self, allowed: Iterable[str] = (), *, resolver: Callable[[str, int], list[str]] = resolve
    ) -> None:
        self._allowed = frozenset(name.strip().lower().strip("[]") for name in allowed if name.strip())
        self._resolve = resolver
        self._resolvers = concurrent.futures.ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolve")

    def check(self, url: str) -> tuple[Place, list[str]]:
        """Return where a URL leads: the addresses that were checked, of which one is to be called.

        Raises:
            AddressRefused: it may not be called.
            Unresolved: its name cannot be looked up now.
        """
        place = place_of(url)
        allowed = bool(self._allowed & {place.host, f"{place.host}:{place.port}"})
        if not allowed:
            _check_name(place.host)
        addresses = self._addresses(place)
        if not allowed and not all(map(is_public, addresses)):
            raise AddressRefused("its host is not on the public internet")
        return place, addresses[:MAX_ADDRESSES]

    def _addresses(self, place: Place) -> list[str]:
        try:
            found = self._resolvers.submit(self._resolve, place.host, place.port).result(RESOLVE_S)
        except (socket.gaierror, UnicodeError) as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                raise Unresolved("the name server does not answer") from error
            raise AddressRefused("its host has no address") from error
        except TimeoutError as error:
            raise Unresolved("the name server does not answer") from error
        if not found:
            raise AddressRefused("its host has no address")
        return found


def _check_name(host: str) -> None:
    """Refuse names of this machine or network, and numbers that only some programs take for an address."""
    if any(host == name or host.endswith(f".{name}") for name in _LOCAL_NAMES):
        raise AddressRefused("its host is not on the public internet")
    if ":" in host or not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return
    try:
        ipaddress.IPv4Address(host)
    except ValueError as error:
        raise AddressRefused("write an IPv4 address as four decimal numbers") from error


class Fetcher:
    """Calls guarded addresses. For one event loop; close it by `aclose`."""

    def __init__(
        self, guard: Guard, *, timeout_s: float = TIMEOUT_S, verify: ssl.SSLContext | bool = True
    ) -> None:
        self._guard = guard
        self._timeout_s = timeout_s
        # No connection is kept: one opened for a name must never serve another at the same address.
        self._client = httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            verify=verify,
            timeout=httpx2.Timeout(timeout_s),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def aclose(self) -> None:
        """Give the connections up."""
        await self._client.aclose()

    async def post(self, url: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        """POST once; return the answer, whatever its status is. Redirects are not followed.

        Raises:
            AddressRefused: the URL may not be called (any more).
            CallFailed: no answer came in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                place, addresses = await asyncio.to_thread(self._guard.check, url)
                return await self._post(place, addresses, content, headers)
        except TimeoutError as error:
            raise CallFailed("timeout") from error
        except Unresolved as error:
            raise CallFailed("unresolved") from error

    async def _post(
        self, place: Place, addresses: list[str], content: bytes, headers: Mapping[str, str]
    ) -> Answer:
        failed = CallFailed("connect")
        for address in addresses:
            try:
                return await self._call(place, address, content, headers)
            except httpx2.TimeoutException as error:
                raise CallFailed("timeout") from error
            except httpx2.ConnectError as error:
                tls = isinstance(error.__context__, ssl.SSLError) or "SSL" in str(error)
                failed = CallFailed("tls" if tls else "connect")
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise CallFailed("broken") from error
        raise failed

    async def _call(self, place: Place, address: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        call = self._client.stream(
            "POST",
            place.at(address),
            content=content,
            headers={**headers, "Host": place.authority, "Connection": "close"},
            extensions={"sni_hostname": place.host},
        )
        async with call as response:
            with contextlib.suppress(TimeoutError, httpx2.HTTPError):
                async with asyncio.timeout(ANSWER_S):
                    await _read_some(response)
            return Answer(
                status=response.status_code, retry_after_s=_seconds(response.headers.get("retry-after", ""))
            )


def _seconds(retry_after: str) -> float:
    """Read a `Retry-After` in seconds; a date counts for nothing, and nobody is left alone for days."""
    return min(float(retry_after), MOST_LEFT_ALONE_S) if re.fullmatch(r"[0-9]{1,9}", retry_after) else 0.0


async def _read_some(response: httpx2.Response) -> None:
    """Read an answer out, as far as it is worth: who sends a short one sees no cut connection."""
    read = 0
    async for chunk in response.aiter_raw():
        read += len(chunk)
        if read > MAX_ANSWER_BYTES:
            return
