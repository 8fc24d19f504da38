"""OpenAI's images API, `/v1/images/generations` and `/v1/images/edits`, for clients whose base URL is ours.

Each request is one job, and its answer waits for the job's end. What the fields mean is in `openai_fields`.
"""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from pixelkiln.api.auth import Caller, CurrentCaller
from pixelkiln.api.body import JsonBody
from pixelkiln.api.facades.openai_answers import document, stream
from pixelkiln.api.facades.openai_fields import Answer, answer_of, job_of, parsed
from pixelkiln.api.facades.running import Run
from pixelkiln.api.forms import form_of
from pixelkiln.api.jobs import IdempotencyKey
from pixelkiln.api.services import Parts, Services
from pixelkiln.validation import wrong
from pixelkiln_shared.errors import InvalidImage
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.pictures import open_picture, open_transparency

MAX_FILES = 17  # as many as that service takes; more than one picture is refused in words
MAX_FIELDS = 40

router = APIRouter(tags=["OpenAI"], include_in_schema=False)


@router.post("/v1/images/generations")
async def generations(
    request: Request,
    body: JsonBody,
    parts: Parts,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Draw pictures and answer with them."""
    if not isinstance(body, dict):
        raise wrong("invalid_type", "", "the body is a JSON object")
    if body.get("prompt") is None:
        raise wrong("missing_field", "/prompt", "a prompt is needed")
    answer, job = answer_of(body), job_of(Kind.GENERATE, body)
    run = await Run.begin(job, request, parts, caller, key=idempotency_key, fingerprint=body)
    return await _answered(run, answer, "image_generation")


@router.post("/v1/images/edits")
async def edits(
    request: Request, parts: Parts, caller: CurrentCaller, idempotency_key: IdempotencyKey = None
) -> Response:
    """Draw a picture anew, or what a mask frees of it, and answer with the result."""
    async with form_of(request, max_files=MAX_FILES, max_fields=MAX_FIELDS) as form:
        fields = parsed({name: value for name, value in form.items() if isinstance(value, str)})
        picture, mask = await _pictures(form)
    answer, job = answer_of(fields), job_of(Kind.EDIT, fields)
    job["input"] |= await run_in_threadpool(_kept, picture, mask, parts, caller)
    fingerprint = [fields, *(hashlib.sha256(data).hexdigest() for data in (picture, mask or b""))]
    run = await Run.begin(job, request, parts, caller, key=idempotency_key, fingerprint=fingerprint)
    return await _answered(run, answer, "image_edit")


async def _pictures(form: FormData) -> tuple[bytes, bytes | None]:
    pictures = [*form.getlist("image"), *form.getlist("image[]")]
    masks = form.getlist("mask")
    if len(pictures) != 1 or not isinstance(pictures[0], UploadFile):
        raise wrong("invalid_reference", "/image", "an edit takes one picture, as a file")
    if len(masks) > 1 or not all(isinstance(mask, UploadFile) for mask in masks):
        raise wrong("invalid_reference", "/mask", "a mask is one file")
    mask = await masks[0].read() if masks and isinstance(masks[0], UploadFile) else None
    return await pictures[0].read(), mask


def _kept(picture: bytes, mask: bytes | None, parts: Services, caller: Caller) -> dict[str, Any]:
    """Store the pictures of an edit as uploads; returns the references to them."""
    kept: dict[str, Any] = {}
    for name, data, read in (("image", picture, open_picture), ("mask", mask, open_transparency)):
        if data is None:
            continue
        try:
            upload_id, _, _ = parts.producer.upload(data, tenant=caller.tenant, read=read)
        except InvalidImage as error:
            error.pointer = f"/{name}"
            raise
        kept[name] = {"upload": upload_id}
    return kept


async def _answered(run: Run, answer: Answer, name: str) -> Response:
    if answer.stream:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream(run, answer, name), media_type="text/event-stream", headers=headers)
    record = await run.result()
    return JSONResponse(await run_in_threadpool(document, record, run.views, links=answer.links))
