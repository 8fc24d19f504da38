"""`/v1/webhooks`: what was told to whom, and once more; and the courier that tells it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request

from pixelkiln.api import cursors
from pixelkiln.api.auth import Caller, CurrentCaller
from pixelkiln.api.responses import problems
from pixelkiln.api.services import Parts, Services
from pixelkiln.api.views import Views
from pixelkiln.fetch import Fetcher
from pixelkiln.resources import DeliveryPage, DeliveryResource
from pixelkiln.webhooks.delivery import Courier
from pixelkiln.webhooks.destinations import guard_of
from pixelkiln.webhooks.messages import message, message_of_the_deleted
from pixelkiln.webhooks.signing import read_secrets
from pixelkiln_shared.errors import NotFound
from pixelkiln_shared.ledger.outbox import Delivery, DeliveryStatus

MAX_PAGE = 200

_ID = re.compile(r"msg_[0-9a-hjkmnp-tv-z]{26}_[0-9]{1,9}")

router = APIRouter(tags=["webhooks"])


@router.get("/v1/webhooks", response_model=DeliveryPage, responses=problems())
def listing(
    request: Request,
    parts: Parts,
    caller: CurrentCaller,
    status: Annotated[DeliveryStatus | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> DeliveryPage:
    """List the messages about jobs and groups, newest first."""
    filters: dict[str, str | None] = {"webhooks": caller.tenant, "status": status}
    after = cursors.unseal(cursor, filters, parts.secret) if cursor is not None else None
    page = parts.outbox.list(caller.tenant, status=status, limit=limit, after=after)
    base = Views.of(request, parts).base
    return DeliveryPage(
        deliveries=[shown(one, base) for one in page.deliveries],
        next_cursor=cursors.seal(page.after, filters, parts.secret) if page.after is not None else None,
    )


@router.get("/v1/webhooks/{delivery_id}", response_model=DeliveryResource, responses=problems())
def delivery(delivery_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> DeliveryResource:
    """Return one message as it stands."""
    return shown(_own(delivery_id, parts, caller), Views.of(request, parts).base)


@router.post(
    "/v1/webhooks/{delivery_id}/redeliver",
    status_code=202,
    response_model=DeliveryResource,
    responses=problems(),
)
def redeliver(delivery_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> DeliveryResource:
    """Send a message again, under the same id, and retry it as if it were new."""
    found = _own(delivery_id, parts, caller)
    return shown(parts.outbox.again(found.id), Views.of(request, parts).base)


@router.get("/v1/jobs/{job_id}/webhooks", response_model=DeliveryPage, responses=problems())
def of_job(job_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> DeliveryPage:
    """List the messages about a job, newest first."""
    record = parts.producer.get(job_id, caller.tenant)
    return _about(record.id, request, parts)


@router.get("/v1/groups/{group_id}/webhooks", response_model=DeliveryPage, responses=problems())
def of_group(group_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> DeliveryPage:
    """List the messages about a group's completion, newest first; those about its jobs are theirs."""
    group = parts.producer.group(group_id, caller.tenant)
    return _about(group.id, request, parts)


def courier(services: Services) -> Courier | None:
    """Return this process's courier; None where no secret is set, for then nothing is signed and sent."""
    settings = services.settings
    secrets = read_secrets(settings.webhook_secrets.get_secret_value())
    if not secrets:
        return None
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - no binding here
    views = Views(services, (settings.public_url or f"http://{host}:{settings.port}").rstrip("/"))

    def body_of(delivery: Delivery) -> str:
        try:
            if delivery.event.startswith("group."):
                return message(
                    delivery, views.group(services.producer.group(delivery.subject, delivery.tenant))
                )
            return message(delivery, views.job(services.producer.get(delivery.subject, delivery.tenant)))
        except NotFound:
            return message_of_the_deleted(delivery)

    return Courier(services.outbox, Fetcher(guard_of(settings)), secrets, body_of)


def shown(delivery: Delivery, base: str) -> DeliveryResource:
    """Return a delivery as users see it."""
    at = f"{base}/v1/webhooks/{delivery.id}"
    of = "groups" if delivery.event.startswith("group.") else "jobs"
    return DeliveryResource(
        id=delivery.id,
        event=delivery.event,
        subject=delivery.subject,
        url=delivery.url,
        status=delivery.status,
        attempts=delivery.attempts,
        created_at=_moment(delivery.created_at),
        last_attempt_at=_moment(delivery.attempted_at) if delivery.attempted_at else None,
        next_attempt_at=_moment(delivery.due_at) if delivery.due_at else None,
        response_status=delivery.response,
        error=delivery.error,
        urls={"self": at, "redeliver": f"{at}/redeliver", "subject": f"{base}/v1/{of}/{delivery.subject}"},
    )


def _about(subject: str, request: Request, parts: Services) -> DeliveryPage:
    base = Views.of(request, parts).base
    return DeliveryPage(deliveries=[shown(one, base) for one in parts.outbox.of(subject)])


def _own(delivery_id: str, parts: Services, caller: Caller) -> Delivery:
    missing = NotFound("no such delivery")
    if not _ID.fullmatch(delivery_id):
        raise missing
    try:
        found = parts.outbox.get(delivery_id)
    except NotFound as error:
        raise missing from error
    if found.tenant != caller.tenant:
        raise missing
    return found


def _moment(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)
