"""Every error of the HTTP layer, and how any error becomes an RFC 9457 problem.

InvalidRequest
├── MalformedJson          400  not JSON, too deep, or no body
├── InvalidIdempotencyKey  400  empty, too long or with control characters
├── InvalidMultipart       400  not one file in a form
├── RequestTimeout         408  the body came too slowly
├── BodyTooLarge           413  more bytes than `max_body_bytes`
├── BatchTooLarge          413  more jobs in one request than `max_bulk`
├── UnsupportedMediaType   415  another content type
└── UnsupportedEncoding    415  a compressed body
Forbidden
└── CrossOrigin            403  a browser sent this on behalf of another site, or under a foreign host name
LinkExpired                403  a file link that is altered or too old
RateLimited                429  a key, or an address with wrong ones, asks too often
RunFailed                  500  a job somebody waited for at a facade has ended without a result
RunTooLong                 504  ... or has not ended in time
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pixelkiln.api.dialects import dialect_of
from pixelkiln.validation import faults
from pixelkiln_shared.errors import (
    Forbidden,
    InvalidRequest,
    PixelkilnError,
    QueueFull,
    RedisFull,
    RedisUnavailable,
    StorageUnavailable,
    Unauthorized,
    Unavailable,
)

RETRY_AFTER_S = 2  # a Redis or a store that restarts is back in about this time


class MalformedJson(InvalidRequest):
    """The body is not the JSON we read."""

    code = "malformed_json"
    status = 400


class InvalidIdempotencyKey(InvalidRequest):
    """The Idempotency-Key is empty, too long or not printable."""

    code = "invalid_idempotency_key"
    status = 400


class InvalidMultipart(InvalidRequest):
    """The form is broken or does not hold exactly one file."""

    code = "invalid_multipart"
    status = 400


class RequestTimeout(InvalidRequest):
    """The body came too slowly."""

    code = "request_timeout"
    status = 408


class BodyTooLarge(InvalidRequest):
    """The body has more bytes than we take."""

    code = "body_too_large"
    status = 413


class BatchTooLarge(InvalidRequest):
    """Too many jobs in one request."""

    code = "batch_too_large"
    status = 413


class UnsupportedMediaType(InvalidRequest):
    """The content type is not the one this address reads."""

    code = "unsupported_media_type"
    status = 415


class UnsupportedEncoding(InvalidRequest):
    """The body is compressed; we do not unpack requests."""

    code = "unsupported_encoding"
    status = 415


class CrossOrigin(Forbidden):
    """A browser asks on behalf of another site, or under a host name that is not ours."""

    code = "cross_origin"


class LinkExpired(Forbidden):
    """The file link is altered or too old; read the job again for a fresh one."""

    code = "link_expired"


class RateLimited(PixelkilnError):
    """A key, or an address with wrong ones, asks too often; `retry_after_s` says when to come back."""

    code = "rate_limited"
    status = 429
    retryable = True


class RunFailed(PixelkilnError):
    """A job has ended without a result, which is all its caller asked for. The code is the job's."""

    code = "job_failed"


class RunTooLong(PixelkilnError):
    """A job has not ended in the time that its caller waits. It goes on."""

    code = "timeout"
    status = 504


class NotUnderstood(InvalidRequest):
    """A query parameter is wrong."""

    code = "invalid_parameter"


class AsciiResponse(Response):
    """JSON in ASCII, so that whatever was sent to us can be named in it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode as JSON."""
        return json.dumps(content, ensure_ascii=True).encode("ascii")


class ProblemResponse(AsciiResponse):
    """A problem document."""

    media_type = "application/problem+json"


def problem(error: PixelkilnError, request: Request) -> AsciiResponse:
    """Return the answer for one of our errors: a problem document, or what a facade's clients read."""
    dialect = dialect_of(request.url.path)
    if dialect is None:
        answer: AsciiResponse = ProblemResponse(_document(error, request), status_code=error.status)
    else:
        answer = AsciiResponse(dialect(error, told(error)), status_code=error.status)
    _advise(error, answer.headers)
    return answer


def _document(error: PixelkilnError, request: Request) -> dict[str, Any]:
    errors = error.detail.get("errors")
    if errors is None and error.pointer is not None:
        errors = [{"pointer": error.pointer, "code": error.code, "detail": error.message, **error.detail}]
    return {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": told(error),
        "instance": request.url.path[:200],
        "code": error.code,
        "errors": errors or [],
        "request_id": request_id(request),
    }


def request_id(request: Request) -> str | None:
    """Return the id under which this request is logged."""
    found: str | None = request.scope.get("state", {}).get("request_id")
    return found


def of_http(error: HTTPException) -> PixelkilnError:
    """Translate what the framework raises (404, 405, ...)."""
    phrase = HTTPStatus(error.status_code).phrase
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    kind = type("HttpError", (PixelkilnError,), {"status": error.status_code})
    message = "nothing is here" if error.status_code == 404 else str(error.detail or phrase).lower()
    made: PixelkilnError = kind(message, code=code)
    return made


def of_parameters(error: RequestValidationError, request: Request) -> PixelkilnError:
    """Translate wrong query parameters and headers."""
    found = []
    for entry in error.errors():
        where, *names = entry["loc"]
        name = str(names[0]) if names else ""
        wrong = _Located(entry, request.query_params.get(name))
        fault = faults(wrong, {}, "")[0]  # type: ignore[arg-type]
        found.append({"parameter": name, "in": where, **{k: v for k, v in fault.items() if k != "pointer"}})
    first = found[0]
    return NotUnderstood(
        f"{first['parameter']}: {first['detail']}", code=first["code"], detail={"errors": found[:20]}
    )


class _Located:
    """One entry of a framework error in the form pydantic's own errors have."""

    def __init__(self, entry: dict[str, Any], value: str | None) -> None:
        self._entry = {**entry, "loc": ()}
        self.value = value

    def errors(self, **_: bool) -> list[dict[str, Any]]:
        return [self._entry]


def told(error: PixelkilnError) -> str:
    """Return the message, but of what we stand on only that it is away: its address is nobody's business."""
    if isinstance(error, RedisFull):
        return "the queue has no memory left; try again later"
    if isinstance(error, RedisUnavailable):
        return "the queue does not answer; try again soon"
    if isinstance(error, StorageUnavailable):
        return "the storage does not answer; try again soon"
    return error.message


def _advise(error: PixelkilnError, headers: MutableHeaders) -> None:
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="pixelkiln"'
    if error.code == "no_worker_for_model" or isinstance(error, RunFailed | RunTooLong):
        headers["x-should-retry"] = "false"
    elif isinstance(error, QueueFull | RateLimited | Unavailable):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s or RETRY_AFTER_S))
    if isinstance(error, BodyTooLarge | RequestTimeout):
        headers["Connection"] = "close"  # the rest of the body is not wanted
