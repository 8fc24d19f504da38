"""The outermost layer of the API, alone."""

from __future__ import annotations

import asyncio

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from pixelkiln.api.envelope import Envelope


def test_a_client_that_leaves_is_not_a_mistake_of_ours() -> None:
    async def left(scope: Scope, receive: Receive, send: Send) -> None:
        raise ClientDisconnect

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/uploads", "headers": []}
    with structlog.testing.capture_logs() as logs:
        asyncio.run(Envelope(left)(scope, receive, send))
    assert sent == []
    assert [(line["event"], line["status"]) for line in logs] == [("request", 499)]
