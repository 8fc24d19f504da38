"""`POST /v1/uploads`: one picture in a form, checked and kept for later jobs."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from pixelkiln.api.auth import CurrentCaller
from pixelkiln.api.errors import InvalidMultipart
from pixelkiln.api.forms import form_of
from pixelkiln.api.openapi import UPLOAD_BODY
from pixelkiln.api.responses import problems
from pixelkiln.api.services import Parts
from pixelkiln.resources import UploadResource
from pixelkiln_shared import keys

MAX_FIELDS = 8  # other fields are ignored, but not without end

router = APIRouter(tags=["uploads"])


@router.post(
    "/v1/uploads",
    status_code=201,
    response_model=UploadResource,
    openapi_extra=UPLOAD_BODY,
    responses=problems(),
)
async def upload(request: Request, parts: Parts, caller: CurrentCaller) -> Response:
    """Keep a PNG, JPEG or WebP file for a day; jobs refer to it by `{"upload": id}`."""
    data = await _only_file(request)
    upload_id, sha256, picture = await run_in_threadpool(parts.producer.upload, data, tenant=caller.tenant)
    made = UploadResource(
        id=upload_id,
        sha256=sha256,
        media_type=picture.media_type,
        width=picture.width,
        height=picture.height,
        expires_at=keys.id_time(upload_id) + timedelta(seconds=keys.UPLOAD_S),
    )
    return Response(made.model_dump_json(), status_code=201, media_type="application/json")


async def _only_file(request: Request) -> bytes:
    """Return the bytes of the form's one file; its name and its claimed type are of no interest."""
    async with form_of(request, max_files=1, max_fields=MAX_FIELDS) as form:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise InvalidMultipart("the form holds no file; its part needs a name and a file name")
        return await files[0].read()
