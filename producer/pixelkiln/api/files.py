"""`GET /v1/objects/{key}`: what a folder store holds, for whoever has a link that we signed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, Response

from pixelkiln.api.errors import LinkExpired
from pixelkiln.api.responses import problems
from pixelkiln.api.services import Parts
from pixelkiln_shared.errors import NotFound
from pixelkiln_shared.storage import FolderStorage, content_disposition

router = APIRouter(tags=["files"])

# What is served was made or checked by us, and still: it never runs, whatever it is.
_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src 'self'; style-src 'unsafe-inline'",
    "Cache-Control": "private, max-age=31536000, immutable",
}


@router.get(
    "/v1/objects/{key:path}",
    response_class=FileResponse,
    responses={
        200: {
            "description": "The file",
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(),
    },
)
def file(
    key: str,
    parts: Parts,
    expires: Annotated[int, Query(ge=0)] = 0,
    signature: Annotated[str, Query(max_length=128)] = "",
    filename: Annotated[str | None, Query(max_length=255)] = None,
) -> Response:
    """Return a file; the link says until when."""
    storage = parts.producer.storage
    if not isinstance(storage, FolderStorage):
        raise NotFound("files of this server are in an object store; follow the job's links")
    if not storage.verify(key, expires, signature, filename):
        raise LinkExpired("the link is altered or has expired; read the job again for a fresh one")
    found = storage.head(key)
    if found is None:
        raise NotFound("the file is gone")
    headers = dict(_HEADERS)
    if filename:
        headers["Content-Disposition"] = content_disposition(filename)
    return FileResponse(storage.path(key), media_type=found.media_type, headers=headers)
