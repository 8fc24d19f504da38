"""Multipart forms, read within limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from pixelkiln.api.errors import InvalidMultipart, UnsupportedMediaType


@asynccontextmanager
async def form_of(request: Request, *, max_files: int, max_fields: int) -> AsyncIterator[FormData]:
    """Hold the request's form; its files are gone afterwards.

    Raises:
        UnsupportedMediaType: the body is no form.
        InvalidMultipart: it is broken, or has more files or fields than that.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise UnsupportedMediaType("send multipart/form-data")
    try:
        form = await request.form(max_files=max_files, max_fields=max_fields)
    except (HTTPException, MultiPartException, ValueError, KeyError) as error:
        raise InvalidMultipart(f"the form cannot be read, or holds more than {max_files} files") from error
    try:
        yield form
    finally:
        await form.close()
