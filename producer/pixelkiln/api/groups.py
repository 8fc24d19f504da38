"""`/v1/groups` and `/v1/pipelines`: many jobs in one request."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from pixelkiln.api.auth import CurrentCaller
from pixelkiln.api.body import JsonBody
from pixelkiln.api.errors import BatchTooLarge
from pixelkiln.api.jobs import IdempotencyKey, idempotency
from pixelkiln.api.openapi import GroupSubmission, PipelineSubmission, body_of
from pixelkiln.api.responses import problems
from pixelkiln.api.services import Parts, Services
from pixelkiln.api.views import Views
from pixelkiln.intake import Accepted
from pixelkiln.resources import BulkResource, GroupResource, JobResource, PipelineResource
from pixelkiln.validation import validate
from pixelkiln_shared.jobs import Status

CANCELED_AT_ONCE = 5_000  # a fifth of a second of Redis, in twenty short calls
UNASKED = (Status.BLOCKED, Status.QUEUED, Status.RUNNING)  # nobody has asked these to end

router = APIRouter(tags=["groups"])


@router.post(
    "/v1/groups",
    status_code=202,
    response_model=BulkResource,
    openapi_extra=body_of("GroupSubmission"),
    responses=problems(409, 429),
)
async def submit(
    request: Request,
    body: JsonBody,
    parts: Parts,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept many jobs as one group: all or none."""
    _check_size(body, parts.settings.max_bulk)
    wanted = validate(GroupSubmission, body)
    accepted = await run_in_threadpool(
        parts.producer.submit_group,
        wanted.jobs,
        tenant=caller.tenant,
        group=wanted.group,
        webhook=wanted.webhook,
        idempotency=await run_in_threadpool(idempotency, idempotency_key, request, body, caller),
        at="/jobs",
    )
    warnings = await run_in_threadpool(Views.of(request, parts).unserved, accepted.lanes)
    made = BulkResource(group=accepted.group or "", ids=list(accepted.ids), warnings=warnings)
    return _accepted(made.model_dump_json(), accepted)


@router.get("/v1/groups/{group_id}", response_model=GroupResource, responses=problems())
def group(group_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> Response:
    """Return a group's counters."""
    found = parts.producer.group(group_id, caller.tenant)
    return Response(Views.of(request, parts).group(found).model_dump_json(), media_type="application/json")


@router.post(
    "/v1/groups/{group_id}/cancel",
    response_model=GroupResource,
    responses={202: {"model": GroupResource, "description": "Some are left; ask again"}, **problems()},
)
def cancel(group_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> Response:
    """Cancel the jobs of a group that have not ended, some thousands a request: 202 while some are left."""
    found = parts.producer.cancel_group(group_id, caller.tenant, most=CANCELED_AT_ONCE)
    left = any(found.counts.get(status, 0) for status in UNASKED)
    content = Views.of(request, parts).group(found).model_dump_json()
    return Response(content, status_code=202 if left else 200, media_type="application/json")


@router.post(
    "/v1/pipelines",
    status_code=202,
    response_model=PipelineResource,
    openapi_extra=body_of("PipelineSubmission"),
    responses=problems(409, 429),
    tags=["pipelines"],
)
async def pipeline(
    request: Request,
    body: JsonBody,
    parts: Parts,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept steps of which later ones wait for earlier ones' pictures; each step is a job."""
    wanted = validate(PipelineSubmission, body)
    accepted = await run_in_threadpool(
        parts.producer.submit_pipeline,
        wanted.steps,
        tenant=caller.tenant,
        webhook=wanted.webhook,
        idempotency=await run_in_threadpool(idempotency, idempotency_key, request, body, caller),
        at="/steps",
    )
    resources = await run_in_threadpool(_live, Views.of(request, parts), parts, accepted)
    names = [step["id"] for step in wanted.steps]
    made = PipelineResource(
        group=accepted.group or "",
        steps=dict(zip(names, accepted.ids, strict=True)),
        jobs=resources,
    )
    return _accepted(made.model_dump_json(), accepted)


def _live(views: Views, parts: Services, accepted: Accepted) -> list[JobResource]:
    records = parts.producer.ledger.get_many(accepted.ids)
    return [views.job(record, live=True) for record in records if record is not None]


def _check_size(body: Any, max_jobs: int) -> None:
    jobs = body.get("jobs") if isinstance(body, dict) else None
    if isinstance(jobs, list) and len(jobs) > max_jobs:
        raise BatchTooLarge(
            f"at most {max_jobs} jobs in one request; send more requests with the same group",
            pointer="/jobs",
            detail={"max": max_jobs},
        )


def _accepted(content: str, accepted: Accepted) -> Response:
    headers = {"Location": f"/v1/groups/{accepted.group}"}
    if accepted.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(content, status_code=202, headers=headers, media_type="application/json")
