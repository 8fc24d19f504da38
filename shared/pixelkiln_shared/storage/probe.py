"""Whether a store works: the round trip behind every store's `check`."""

from __future__ import annotations

import secrets

from pixelkiln_shared.errors import NotFound, StorageUnavailable
from pixelkiln_shared.storage.contract import Storage


def round_trip(storage: Storage) -> None:
    """Put, get and delete a small object under a fresh key.

    Raises:
        StorageUnavailable: some step failed, or other bytes came back.
    """
    key, data = f"pixelkiln-check/{secrets.token_hex(8)}", secrets.token_bytes(64)
    storage.put(key, data, media_type="application/octet-stream")
    try:
        same = storage.get(key) == data
    except NotFound:
        same = False
    storage.delete(key)
    if not same:
        raise StorageUnavailable("the store does not give back what was put into it")
