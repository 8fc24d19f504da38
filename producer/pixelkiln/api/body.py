"""Request bodies: how many bytes, how fast, which type, and JSON that is nothing but JSON."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Annotated, Any

from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixelkiln.api.errors import (
    BodyTooLarge,
    MalformedJson,
    RequestTimeout,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from pixelkiln.validation import escape, wrong

BODY_S = 30.0  # a body may take this long,
BYTES_PER_S = 65_536  # and a second longer for each so many bytes: big uploads on slow lines are welcome
MAX_DEPTH = 20
MAX_PARTS = 1_000_000  # brackets and commas: what is parsed takes up to a hundred times the bytes of `[],[],`


class BodyGuard:
    """ASGI middleware: refuses bodies that are too large, too slow or compressed, before they are read."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a guarded `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedEncoding("request bodies must not be compressed")
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._max_bytes:
            raise self._too_large()
        await self._app(scope, self._guarded(receive), send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body may have {self._max_bytes} bytes", detail={"max": self._max_bytes})

    def _guarded(self, receive: Receive) -> Receive:
        loop = asyncio.get_running_loop()
        began = loop.time()
        taken = 0
        complete = False

        async def guarded() -> Message:
            nonlocal taken, complete
            if complete:  # now `receive` waits for the disconnect, which may take as long as it likes
                return await receive()
            deadline = began + BODY_S + taken / BYTES_PER_S
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise RequestTimeout("the body came too slowly") from error
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > self._max_bytes:
                raise self._too_large()
            return message

        return guarded


async def json_body(request: Request) -> Any:
    """Return the parsed JSON body.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
        MalformedJson: it does not parse.
        InvalidInput: `invalid_number` for NaN and infinities, `invalid_prompt` for text that is no Unicode.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("send JSON with Content-Type: application/json")
    return await run_in_threadpool(parse, await request.body())


JsonBody = Annotated[Any, Depends(json_body)]


def parse(data: bytes) -> Any:
    """Parse JSON strictly; see `json_body`."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_PARTS:
        raise BodyTooLarge(f"the JSON has more than {MAX_PARTS} parts")
    try:
        value = json.loads(data, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer)
    except RecursionError as error:
        raise MalformedJson("the JSON is nested too deeply") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MalformedJson("the body is not JSON") from error
    _inspect(value, "", 0)
    return value


def _no_constant(name: str) -> Any:
    raise wrong("invalid_number", "", f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise wrong("invalid_number", "", f"{text[:20]} is too large for a number")
    return number


def _integer(text: str) -> int:
    if len(text) > 100:  # Python itself refuses beyond 4,300 digits, with quadratic work before
        raise wrong("invalid_number", "", "an integer has too many digits")
    return int(text)


def _inspect(value: Any, pointer: str, depth: int) -> None:
    """Refuse deep nesting and lone surrogates, which cannot be written anywhere again."""
    if depth > MAX_DEPTH:
        raise MalformedJson(f"the JSON is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        _check_text(value, pointer)
    elif isinstance(value, dict):
        for key, child in value.items():
            _check_text(key, pointer)
            if isinstance(child, str | dict | list):
                _inspect(child, f"{pointer}/{escape(key)}", depth + 1)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            if isinstance(child, str | dict | list):
                _inspect(child, f"{pointer}/{index}", depth + 1)


def _check_text(text: str, pointer: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise wrong("invalid_prompt", pointer, "the text holds half of a surrogate pair") from error
