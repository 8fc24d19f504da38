"""What every operation may answer besides its own success, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

_WHY = {
    400: "Malformed JSON, multipart or header",
    401: "No valid key",
    403: "The key is not for this, a foreign site asks, or the link is altered or expired",
    404: "No such thing, or somebody else's",
    408: "The body came too slowly",
    409: "The job's state does not allow it",
    413: "Too many bytes or jobs",
    415: "Another content type, or a compressed body",
    422: "A field is wrong; `errors` says which",
    429: "The queue is full, or this key asks too often; come back after `Retry-After`",
    500: "A mistake of ours",
    503: "Redis or the storage does not answer, or nothing can run this",
}
_ALWAYS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503)
_RETRY = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "string"}}}
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def problems(*more: int) -> dict[int | str, dict[str, Any]]:
    """Return the problem answers that every operation may give, and `more` of its own."""
    return {
        status: {"description": _WHY[status], "content": _PROBLEM, **_headers(status)}
        for status in sorted({*_ALWAYS, *more})
    }


def _headers(status: int) -> dict[str, Any]:
    return {"headers": _RETRY} if status in {429, 503} else {}
