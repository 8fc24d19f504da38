"""List cursors: where a page ended, signed together with the listing they belong to."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping

from pixelkiln_shared.errors import InvalidCursor

MAX_CURSOR = 512
_SIGNATURE_BYTES = 16


def seal(after: int, listing: Mapping[str, str | None], secret: bytes) -> str:
    """Return the cursor of the page that follows sequence `after` in this listing (tenant and filters)."""
    body = str(after).encode()
    return base64.urlsafe_b64encode(_signature(body, listing, secret) + body).rstrip(b"=").decode()


def unseal(cursor: str, listing: Mapping[str, str | None], secret: bytes) -> int:
    """Return the sequence to go on from.

    Raises:
        InvalidCursor: not signed by us, or for another tenant or other filters.
    """
    wrong = InvalidCursor("this cursor does not belong to this listing")
    if len(cursor) > MAX_CURSOR:
        raise wrong
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong from error
    signature, body = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signature(body, listing, secret)):
        raise wrong
    return int(body)


def _signature(body: bytes, listing: Mapping[str, str | None], secret: bytes) -> bytes:
    signed = json.dumps(sorted(listing.items())).encode() + b"\0" + body
    return hmac.new(secret, b"cursor" + signed, hashlib.sha256).digest()[:_SIGNATURE_BYTES]
