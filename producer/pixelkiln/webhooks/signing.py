"""Signatures of messages, after the Standard Webhooks specification, with secrets of each receiver's own."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from standardwebhooks import Webhook

from pixelkiln.fetch import AddressRefused, place_of
from pixelkiln_shared.errors import Misconfigured

_PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64  # the specification's bounds
_PURPOSE = b"webhook-secret-1\n"  # whatever else is made from a main secret one day is another key
_MAIN = ""  # no receiver has this name


@dataclass(frozen=True, slots=True)
class Secrets:
    """What messages are signed with: from each main secret one of the receiver's own, or those named for it.

    A receiver is the origin of a URL (scheme, host and port). Who knows one receiver's secret can sign for no
    other, and cannot find out the main secret (ADR 19).
    """

    main: tuple[str, ...] = ()
    named: Mapping[str, tuple[str, ...]] | None = None

    def __bool__(self) -> bool:
        return bool(self.main)

    def of(self, url: str) -> tuple[str, ...]:
        """Return the secrets of a URL's receiver; several while they change.

        Raises:
            AddressRefused: no URL that may ever be told.
        """
        receiver = _receiver_of(url)
        named = (self.named or {}).get(receiver)
        return named or tuple(_derived(secret, receiver) for secret in self.main)


def read_secrets(setting: str) -> Secrets:
    """Read `PIXELKILN_WEBHOOK_SECRETS`: `whsec_...` and `ORIGIN=whsec_...`, with commas between.

    Raises:
        Misconfigured: one is no `whsec_` and 24 to 64 bytes in base64, or its origin is none, or all are
            named. The text repeats no secret.
    """
    found: dict[str, list[str]] = {}
    for number, part in enumerate(filter(None, re.split(r"[\s,]+", setting)), 1):
        receiver, secret = _named(part, number)
        if not _is_secret(secret):
            raise Misconfigured(
                f"PIXELKILN_WEBHOOK_SECRETS: secret {number} is not `whsec_` and {_LEAST_BYTES} to"
                f" {_MOST_BYTES} bytes in base64; `openssl rand -base64 32` makes some"
            )
        found.setdefault(receiver, []).append(secret)
    main = found.pop(_MAIN, [])
    if found and not main:
        raise Misconfigured("PIXELKILN_WEBHOOK_SECRETS: one of them must be for receivers that have no own")
    return Secrets(tuple(main), {receiver: tuple(secrets) for receiver, secrets in found.items()})


def _named(part: str, number: int) -> tuple[str, str]:
    """Return the receiver that a secret is named for, and the secret."""
    origin, equals, rest = part.partition(f"={_PREFIX}")
    if not equals:
        return _MAIN, part
    try:
        place = place_of(origin)
    except AddressRefused as error:
        raise Misconfigured(f"PIXELKILN_WEBHOOK_SECRETS: secret {number} is for no URL: {error}") from error
    if place.path != "/":
        raise Misconfigured(
            f"PIXELKILN_WEBHOOK_SECRETS: secret {number}: name scheme, host and port without a path"
        )
    return _receiver_of(origin), _PREFIX + rest


def _receiver_of(url: str) -> str:
    place = place_of(url)
    return f"{place.scheme}://{place.authority}"


def _derived(secret: str, receiver: str) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    made = hmac.new(key, _PURPOSE + receiver.encode(), hashlib.sha256).digest()
    return _PREFIX + base64.b64encode(made).decode()


def _is_secret(text: str) -> bool:
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return text.startswith(_PREFIX) and _LEAST_BYTES <= len(key) <= _MOST_BYTES


def signed_headers(secrets: Sequence[str], message_id: str, body: str, at: datetime) -> dict[str, str]:
    """Return the headers of a message: `webhook-id`, `webhook-timestamp`, `webhook-signature`.

    Args:
        secrets: each gives a signature, so that a receiver may change to a new one at any time.
        at: when it is sent, in UTC; receivers refuse what is older than five minutes.
    """
    moment = at.astimezone(UTC)
    keys = [Webhook(secret) for secret in secrets]
    signatures = [key.sign(msg_id=message_id, timestamp=moment, data=body) for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
