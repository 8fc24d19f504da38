"""The body of a message: what happened, when, and the resource as it is now."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from pydantic import BaseModel

from pixelkiln_shared.ledger.outbox import Delivery


def message(delivery: Delivery, resource: BaseModel) -> str:
    """Return the JSON that tells of a job or group; its links are as fresh as `resource` is."""
    return _text(delivery, resource.model_dump_json())


def message_of_the_deleted(delivery: Delivery) -> str:
    """Return the JSON that tells of a job or group whose record is gone already."""
    return _text(delivery, json.dumps({"id": delivery.subject, "deleted": True}))


def _text(delivery: Delivery, data: str) -> str:
    happened = datetime.fromtimestamp(delivery.created_at, UTC).isoformat().replace("+00:00", "Z")
    return f'{{"type":{json.dumps(delivery.event)},"timestamp":{json.dumps(happened)},"data":{data}}}'
