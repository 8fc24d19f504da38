"""One HTTP exchange: what is asked, how answers are read, and when to ask again. No I/O here.

Whatever the client does is written once, as a *flow*: a generator yielding `Call`, `Pause` and `Emit` steps
and is driven by `Client` with blocking calls or by `AsyncClient` with awaited ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel
from pydantic import ValidationError as UnreadableAnswer

from pixelkiln.client.errors import BY_STATUS, ApiError, QueueFullError, ServerUnreachable
from pixelkiln.resources import Problem
from pixelkiln_shared.errors import PixelkilnError

FIRST_CONTACT_S = 1.0  # a server that never answered is probably not there: say so soon
BUSY = frozenset({429, 502, 503, 504})
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """An HTTP request. `path` is below the API's base, or a whole URL, which gets no key elsewhere."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand a value to whoever iterates."""

    value: Any


Flow = Generator[Call | Pause | Emit, Any, T]


@dataclass(slots=True)
class Retry:
    """How long to keep asking a server that is busy or away; all requests of a client share one.

    Attributes:
        for_s: the budget of one request, in seconds, counted from its first try.
        reached: whether this server has ever answered.
    """

    for_s: float = 60.0
    reached: bool = False

    def delay_s(self, tries: int, asked_s: float | None) -> float:
        """Return the pause before the next try: what the server asked for, or doubling to 8 s; jittered."""
        if asked_s is not None:
            return asked_s + random.uniform(0, 0.1 * asked_s + 0.05)  # noqa: S311  jitter, not a secret
        return min(8.0, 0.2 * 2.0 ** min(tries, 10)) * random.uniform(0.5, 1.0)  # noqa: S311


def below(path: str, *names: str) -> str:
    """Return a path with names appended, each quoted: what a user typed as an id is never another path."""
    return "/".join([path, *(quote(name, safe="") for name in names)])


def send(call: Call, retry: Retry) -> Flow[httpx2.Response]:
    """Send a request until it is answered, as long as asking again can help.

    Every POST of ours carries an Idempotency-Key, the same one over all tries: a lost answer is no harm.

    Raises:
        ApiError: the API refused.
        ServerUnreachable: nothing answered within the budget.
    """
    began = time.monotonic()
    tries = 0
    while True:
        failure: PixelkilnError
        try:
            response: httpx2.Response = yield call
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            failure = unreachable(call, error)
            budget_s = retry.for_s if retry.reached else min(FIRST_CONTACT_S, retry.for_s)
            if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
                budget_s = 0.0
        else:
            retry.reached = True
            if response.is_success:
                return response
            failure = problem_of(response)
            budget_s = retry.for_s if worth_retrying(response, failure) else 0.0
        delay_s = retry.delay_s(tries, failure.retry_after_s)
        if time.monotonic() + delay_s > began + budget_s:
            raise failure
        yield Pause(delay_s)
        tries += 1


def worth_retrying(response: httpx2.Response, failure: ApiError) -> bool:
    """Tell whether the same request may be answered otherwise soon; `x-should-retry` has the last word."""
    advice = response.headers.get("x-should-retry", "").lower()
    if advice in {"true", "false"}:
        return advice == "true"
    first_in_flight = response.status_code == 409 and failure.code.startswith("idempotency")
    return response.status_code in BUSY or first_in_flight


def unreachable(call: Call, error: Exception) -> ServerUnreachable:
    """Return the error for a request that got no answer."""
    request = getattr(error, "_request", None)
    where = str(request.url.copy_with(query=None)) if request is not None else call.path
    reason = str(error) or type(error).__name__
    return ServerUnreachable(f"no answer from {where}: {reason}")


def problem_of(response: httpx2.Response) -> ApiError:
    """Read an error answer; one that is no problem object (a proxy's page) is made into one."""
    status = response.status_code
    try:
        problem = Problem.model_validate_json(response.content)
    except UnreadableAnswer:
        detail = (
            f"{response.request.url.copy_with(query=None)} answered {status} {response.reason_phrase}".strip()
        )
        problem = Problem(title=response.reason_phrase, status=status, code=f"http_{status}", detail=detail)
    # 503 when it is Redis's memory that is full: for who submits it is the same
    kind = QueueFullError if problem.code == "queue_full" else BY_STATUS.get(status, ApiError)
    return kind(problem, retry_after_s=retry_after_s(response.headers.get("retry-after")))


def retry_after_s(value: str | None, *, now: datetime | None = None) -> float | None:
    """Read a Retry-After header (RFC 9110 10.2.3): seconds or a date; None when absent or unreadable."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError):
        return None


def read(response: httpx2.Response, model: type[M]) -> M:
    """Parse a successful answer.

    Raises:
        ServerUnreachable: it is not what a Pixelkiln API says; the address is probably wrong.
    """
    try:
        return model.model_validate_json(response.content)
    except UnreadableAnswer as error:
        where = response.request.url.copy_with(query=None)
        raise ServerUnreachable(f"what answers at {where} does not speak Pixelkiln's API") from error
