"""The code that docs/webhooks.md shows to receivers: it takes what we send, and nothing else."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pixelkiln.webhooks.signing import signed_headers
from pixelkiln_shared.ledger import outbox

PAGE = (Path(__file__).parents[2] / "docs/webhooks.md").read_text("utf-8")
OLD = "whsec_" + base64.b64encode(b"the old secret of these tests, 32").decode()
NEW = "whsec_" + base64.b64encode(b"the new secret of these tests, 32").decode()
BODY = '{"type":"job.succeeded","data":{"prompt":"füchse 🦊"}}'

Received = Callable[[bytes, dict[str, str], str], Any]


def shown() -> dict[str, Any]:
    """Run every Python block of the page; returns what they define."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(block, names)  # noqa: S102 - our own page
    return names


@pytest.fixture(params=["received", "received_plain"])
def received(request: pytest.FixtureRequest) -> Received:
    """Each way of verifying in turn."""
    function: Received = shown()[request.param]
    return function


def sent(*secrets: str, ago: timedelta = timedelta()) -> dict[str, str]:
    return signed_headers(secrets, "msg_1", BODY, datetime.now(UTC) - ago)


def test_the_shown_code_takes_what_we_send(received: Received) -> None:
    message = received(BODY.encode(), sent(NEW), NEW)
    assert message["data"]["prompt"] == "füchse 🦊"


def test_the_shown_code_takes_either_secret_while_they_change(received: Received) -> None:
    assert received(BODY.encode(), sent(NEW, OLD), OLD) == received(BODY.encode(), sent(NEW, OLD), NEW)
    assert received(BODY.encode(), sent(NEW, OLD), OLD) is not None


def test_the_shown_code_refuses_what_others_send(received: Received) -> None:
    body, headers = BODY.encode(), sent(NEW)
    assert received(body, headers, OLD) is None
    assert received(body + b" ", headers, NEW) is None
    assert received(body, {**headers, "webhook-id": "msg_2"}, NEW) is None
    assert received(body, {}, NEW) is None


def test_the_shown_code_refuses_what_is_old(received: Received) -> None:
    assert received(BODY.encode(), sent(NEW, ago=timedelta(minutes=4)), NEW) is not None
    assert received(BODY.encode(), sent(NEW, ago=timedelta(minutes=6)), NEW) is None


def test_the_page_tells_the_times_of_the_code() -> None:
    steps = [b - a for a, b in zip(outbox.SCHEDULE_S, outbox.SCHEDULE_S[1:], strict=False)]
    words = [f"{s} s" if s < 60 else f"{s // 60} min" if s < 3_600 else f"{s // 3_600} h" for s in steps]
    text = " ".join(PAGE.split())
    assert f"after {', '.join(words[:-1])} and {words[-1]}" in text
    assert f"every {outbox.LOOK_AGAIN_S:.0f} s" in text
    assert f"sent again after {outbox.LEASE_S:.0f} s" in text
