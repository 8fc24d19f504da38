"""What OpenAI's image clients are answered: one document, or a stream with rough pictures before the last."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from pixelkiln.api.dialects import openai
from pixelkiln.api.errors import told
from pixelkiln.api.facades.openai_fields import Answer
from pixelkiln.api.facades.running import Run, files_of
from pixelkiln.api.views import Views
from pixelkiln_shared import previews
from pixelkiln_shared.errors import PixelkilnError
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.ledger.contract import Record

KEEP_ALIVE = ": keep-alive\n\n"

# What is counted there is text; clients read the fields all the same.
_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


def document(record: Record, views: Views, *, links: bool) -> dict[str, Any]:
    """Return the answer to a request whose job has succeeded; `job` and each `seed` are our own.

    Args:
        links: whether pictures are answered by their addresses.

    Raises:
        NotFound: a file is gone.
        StorageUnavailable: the store does not answer.
    """
    job = views.job(record)
    images = sorted((a for a in job.artifacts if a.role is Role.IMAGE), key=lambda a: a.index)
    if links:
        data: list[dict[str, Any]] = [{"url": image.url} for image in images]
    else:
        files = files_of(record, Role.IMAGE, views.services.producer.storage)
        data = [{"b64_json": _base64(content)} for _, content in files]
    for image, one in zip(images, data, strict=True):
        one["seed"] = None if job.seed is None else job.seed + image.index
    facts = {"created": int(record.completed_at or time.time()), "data": data, "job": job.id, "usage": _USAGE}
    return facts | (_kind_of(images[0].media_type, images[0].width, images[0].height) if images else {})


async def stream(run: Run, answer: Answer, name: str) -> AsyncIterator[str]:
    """Yield server-sent events: up to `partial_images` previews, then each picture, or an error.

    Args:
        name: what the events are called after: `image_generation` or `image_edit`.
    """
    try:
        async with aclosing(run.events()) as events:
            shown = 0
            async for event in events:
                if event is None:
                    yield KEEP_ALIVE
                elif event.type == "preview" and shown < answer.partial_images:
                    rough = await run_in_threadpool(run.parts.previews.get, run.job_id)
                    if rough is not None:
                        yield _event(f"{name}.partial_image", _partial(rough, shown))
                        shown += 1
        record = await run.outcome()
        made = await run_in_threadpool(document, record, run.views, links=answer.links)
        for picture in made.pop("data"):
            yield _event(f"{name}.completed", picture | made | {"created_at": made["created"]})
    except PixelkilnError as error:
        yield f"data: {json.dumps(openai(error, told(error)))}\n\n"
    except ClientDisconnect:
        return
    except (anyio.get_cancelled_exc_class(), GeneratorExit):
        with anyio.CancelScope(shield=True):
            await run.left()
        raise


def _partial(rough: bytes, number: int) -> dict[str, Any]:
    return {
        "b64_json": _base64(rough),
        "partial_image_index": number,
        "created_at": int(time.time()),
        **_kind_of(previews.MEDIA_TYPE, None, None),
    }


def _kind_of(media_type: str, width: int | None, height: int | None) -> dict[str, Any]:
    size = f"{width}x{height}" if width and height else "auto"
    return {
        "size": size,
        "output_format": media_type.removeprefix("image/"),
        "quality": "auto",
        "background": "opaque",
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"
