"""Signatures of messages, after the Standard Webhooks specification."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime

from standardwebhooks import Webhook

from pixelkiln_shared.errors import Misconfigured

_PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64  # the specification's bounds


def secrets_of(setting: str) -> list[str]:
    """Return the secrets of `PIXELKILN_WEBHOOK_SECRETS`, checked.

    Raises:
        Misconfigured: one is no `whsec_` and 24 to 64 bytes in base64. The text does not repeat it.
    """
    found = [part for part in re.split(r"[\s,]+", setting) if part]
    for number, secret in enumerate(found, 1):
        if not _is_secret(secret):
            raise Misconfigured(
                f"PIXELKILN_WEBHOOK_SECRETS: secret {number} is not `whsec_` and {_LEAST_BYTES} to"
                f" {_MOST_BYTES} bytes in base64; `openssl rand -base64 32` makes some"
            )
    return found


def _is_secret(text: str) -> bool:
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return text.startswith(_PREFIX) and _LEAST_BYTES <= len(key) <= _MOST_BYTES


class Signer:
    """Signs with every secret there is, so that receivers may change to a new one at any time."""

    def __init__(self, secrets: list[str]) -> None:
        self._keys = [Webhook(secret) for secret in secrets]

    def headers(self, message_id: str, body: str, at: datetime) -> dict[str, str]:
        """Return the headers of a message: `webhook-id`, `webhook-timestamp`, `webhook-signature`.

        Args:
            at: when it is sent, in UTC; receivers refuse what is older than five minutes.
        """
        moment = at.astimezone(UTC)
        signatures = [key.sign(msg_id=message_id, timestamp=moment, data=body) for key in self._keys]
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
