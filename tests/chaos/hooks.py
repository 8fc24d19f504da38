"""A receiver of webhooks that now and then takes none, and writes down what it gets."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

from standardwebhooks import Webhook, WebhookVerificationError

from pixelkiln.webhooks.signing import read_secrets
from tests.chaos.history import History
from tests.chaos.told import OP
from tests.receivers import OK, Got, Receiver, serving, status

CLIENT = -2  # the receiver, in the history
FAILS = ("500", "silent", "reset", "slow")  # what becomes of some first tries
FAILING_SHARE = 0.2
SLOW_S = 2.0


class Hooks(Receiver):
    """Refuses the first try of some messages, as their ids say, and never a second one."""

    def __init__(self, history: History, seed: int) -> None:
        super().__init__()
        self.steady = threading.Event()  # set: nothing is refused any more
        self._history = history
        self._seed = seed
        self._secret = "whsec_" + base64.b64encode(self._digest("secret")).decode()
        self._met: set[str] = set()

    @property
    def environment(self) -> Mapping[str, str]:
        """What the API must be told for this receiver."""
        host = self.url.split("/")[2]
        return {"PIXELKILN_WEBHOOK_SECRETS": self._secret, "PIXELKILN_WEBHOOK_HOSTS": host}

    @cached_property
    def _own_secret(self) -> str:
        """What the operator would have given this receiver."""
        (own,) = read_secrets(self._secret).of(self.url)
        return own

    def answer_to(self, got: Got) -> bytes | str:
        """Note a message and return what to answer."""
        message = got.headers.get("webhook-id", "")
        mood = "" if message in self._met or self.steady.is_set() else self._mood(message)
        self._met.add(message)
        try:
            said = Webhook(self._own_secret).verify(got.body, got.headers)
        except (WebhookVerificationError, ValueError):
            self._history.add(CLIENT, OP, "fail", message, seen={"body": got.body.decode(errors="replace")})
            return status(401)
        data = said["data"]
        seen = {"type": said["type"], "id": data["id"], "status": data.get("status")}
        if mood == "slow":
            self.closing.wait(SLOW_S)
        answered = 200 if mood in ("", "slow") else 500 if mood == "500" else 0
        self._history.add(CLIENT, OP, "ok", message, seen=seen | {"answered": answered})
        return OK if answered == 200 else status(500) if mood == "500" else mood

    def _mood(self, message: str) -> str:
        drawn = self._digest(message)
        return FAILS[drawn[1] % len(FAILS)] if drawn[0] < FAILING_SHARE * 256 else ""

    def _digest(self, text: str) -> bytes:
        return hashlib.sha256(f"pixelkiln-hooks-{self._seed}-{text}".encode()).digest()


@contextmanager
def hooks(history: History, seed: int) -> Iterator[Hooks]:
    """Run a receiver on loopback."""
    receiver = Hooks(history, seed)
    with serving(receiver):
        yield receiver
