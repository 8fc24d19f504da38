"""`/v1/jobs`: submit, look, list, cancel, retry, delete, follow."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from pixelkiln.api import cursors
from pixelkiln.api.auth import Caller, CurrentCaller
from pixelkiln.api.body import JsonBody
from pixelkiln.api.errors import InvalidIdempotencyKey
from pixelkiln.api.openapi import EVENT, body_of
from pixelkiln.api.responses import problems
from pixelkiln.api.services import Parts
from pixelkiln.api.views import Views
from pixelkiln.resources import JobPage, JobResource
from pixelkiln_shared import previews
from pixelkiln_shared.errors import InvalidInput, NotFound
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import Idempotency

MAX_WAIT_S = 60
MAX_PAGE = 200

_WAIT = re.compile(r"(?:^|[,;\s])wait(?:\s*=\s*\"?(\d{1,9})\"?)?(?=$|[,;\s])", re.IGNORECASE)
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_REPLAYED = {"Idempotency-Replayed": {"description": "Present on a replay", "schema": {"type": "string"}}}

router = APIRouter(tags=["jobs"])

IdempotencyKey = Annotated[
    str | None, Header(description="Sent again with the same body, the first answer comes again; kept a day")
]
Prefer = Annotated[
    str | None, Header(description=f"`wait=N`: hold the answer up to N seconds (<= {MAX_WAIT_S})")
]


def idempotency(key: str | None, request: Request, body: Any, caller: Caller) -> Idempotency | None:
    """Return the idempotency of a POST (IETF draft 07: scope, key, fingerprint), quoted or bare.

    Takes a while for a body of megabytes: not for the event loop.

    Raises:
        InvalidIdempotencyKey: empty, too long or not printable ASCII.
    """
    if key is None:
        return None
    key = key.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not _KEY.fullmatch(key):
        raise InvalidIdempotencyKey("an Idempotency-Key has 1 to 255 printable ASCII characters")
    canonical = json.dumps([request.method, request.url.path, body], sort_keys=True, separators=(",", ":"))
    return Idempotency(
        scope=f"{caller.tenant}:{caller.credential}",
        key=key,
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
    )


def wait_preference(prefer: str | None) -> int | None:
    """Return the seconds of `Prefer: wait=N` (RFC 7240), capped; None where it is absent or no number."""
    match = _WAIT.search(prefer or "")
    if match is None:
        return None
    return min(int(match[1]), MAX_WAIT_S) if match[1] else MAX_WAIT_S


@router.post(
    "/v1/jobs",
    status_code=202,
    response_model=JobResource,
    openapi_extra=body_of("JobSubmission"),
    responses={
        200: {"model": JobResource, "description": "Done within the time of `Prefer: wait`"},
        202: {"description": "Accepted", "headers": _REPLAYED},
        **problems(409, 429),
    },
)
async def submit(
    request: Request,
    body: JsonBody,
    parts: Parts,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Accept a job; it runs when a worker is free."""
    _object(body)
    wait_s = wait_preference(prefer)
    accepted = await run_in_threadpool(
        parts.producer.accept,
        body,
        tenant=caller.tenant,
        idempotency=await run_in_threadpool(idempotency, idempotency_key, request, body, caller),
        need_worker=wait_s is not None,
    )
    job_id = accepted.ids[0]
    headers = {"Location": f"/v1/jobs/{job_id}"}
    if accepted.replayed:
        headers["Idempotency-Replayed"] = "true"
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
        await parts.watcher.ended(job_id, wait_s)
    resource = await run_in_threadpool(_view, job_id, caller, request, parts)
    done = wait_s is not None and resource.status.terminal
    return _json(resource, status_code=200 if done else 202, headers=headers)


@router.get("/v1/jobs", response_model=JobPage, responses=problems())
def listing(
    request: Request,
    parts: Parts,
    caller: CurrentCaller,
    status: Annotated[Status | None, Query()] = None,
    kind: Annotated[Kind | None, Query()] = None,
    group: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> Response:
    """List jobs, newest first."""
    filters: dict[str, str | None] = {"tenant": caller.tenant, "status": status, "kind": kind, "group": group}
    after = cursors.unseal(cursor, filters, parts.secret) if cursor is not None else None
    page = parts.producer.jobs(caller.tenant, status=status, kind=kind, group=group, limit=limit, after=after)
    views = Views.of(request, parts)
    return _json(
        JobPage(
            jobs=[views.job(record) for record in page.records],
            next_cursor=cursors.seal(page.after, filters, parts.secret) if page.after is not None else None,
        )
    )


@router.get("/v1/jobs/{job_id}", response_model=JobResource, responses=problems())
def job(job_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> Response:
    """Return a job as it is now."""
    return _json(_view(job_id, caller, request, parts))


@router.post("/v1/jobs/{job_id}/cancel", response_model=JobResource, responses=problems())
def cancel(job_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> Response:
    """Ask a job to end. Asking twice, or after its end, changes nothing."""
    record = parts.producer.cancel(job_id, caller.tenant)
    return _json(Views.of(request, parts).job(record))


@router.post("/v1/jobs/{job_id}/retry", response_model=JobResource, responses=problems(409))
def retry(job_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> Response:
    """Put a failed, canceled or expired job back into its queue."""
    record = parts.producer.retry(job_id, caller.tenant)
    return _json(Views.of(request, parts).job(record, live=True))


@router.delete("/v1/jobs/{job_id}", status_code=204, response_class=Response, responses=problems(409))
def delete(job_id: str, parts: Parts, caller: CurrentCaller) -> Response:
    """Remove a finished job: its record, its input and its artifacts."""
    parts.producer.delete(job_id, caller.tenant)
    return Response(status_code=204)


@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "`status` (a whole job), `progress`, `preview`, `artifact`, `error`",
            "content": {"text/event-stream": {"schema": EVENT}},
        },
        **problems(),
    },
)
async def events(
    job_id: str,
    request: Request,
    parts: Parts,
    caller: CurrentCaller,
    last_event_id: Annotated[str | None, Header(description="Go on after this event")] = None,
) -> Response:
    """Follow a job: a snapshot first, then what happens, until it has ended."""
    record = await run_in_threadpool(parts.producer.get, job_id, caller.tenant)
    views = Views.of(request, parts)
    stream = parts.watcher.stream(
        record.id, last_event_id, lambda found: views.job(found, live=True), base=views.base
    )
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


@router.get(
    "/v1/jobs/{job_id}/preview",
    response_class=Response,
    responses={
        200: {
            "description": "A rough picture of a job that runs",
            "content": {previews.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(),
    },
)
def preview(job_id: str, parts: Parts, caller: CurrentCaller) -> Response:
    """Return the newest rough picture of a job; most models give one a second, from the second on."""
    found = parts.previews.get(parts.producer.get(job_id, caller.tenant).id)
    if found is None:
        raise NotFound("there is no preview of this job, or none any more")
    return Response(found, media_type=previews.MEDIA_TYPE, headers={"Cache-Control": "no-store"})


def _view(job_id: str, caller: Caller, request: Request, parts: Parts) -> JobResource:
    return Views.of(request, parts).job(parts.producer.get(job_id, caller.tenant), live=True)


def _object(body: Any) -> None:
    if not isinstance(body, dict):
        raise InvalidInput("the body is a JSON object", code="invalid_type", pointer="")


def _json(
    resource: JobResource | JobPage, *, status_code: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(
        resource.model_dump_json(), status_code=status_code, headers=headers, media_type="application/json"
    )
