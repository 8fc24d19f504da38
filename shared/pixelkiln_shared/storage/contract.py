"""Where bytes live, as both stores (folder and S3) offer it. Keys come from `keys.py`, never from users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredObject:
    """An object's facts. `sha256` is of the bytes, written by us at `put`; None when others wrote it."""

    key: str
    size_bytes: int
    media_type: str
    modified_at: datetime
    sha256: str | None = None


class Storage(Protocol):
    """Put, get, head, delete, list and signed links: nothing that differs between S3 servers.

    Every method raises `StorageUnavailable` once its retries are spent.
    """

    def put(self, key: str, data: bytes | Path, *, media_type: str) -> StoredObject:
        """Store bytes (or a file's) under a key; a second put replaces the first, atomically."""
        ...

    def get(self, key: str) -> bytes:
        """Return the whole object, its length checked and its SHA-256 where known.

        Raises:
            NotFound: no such key.
        """
        ...

    def head(self, key: str) -> StoredObject | None:
        """Return the object's facts, or None."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""
        ...

    def list(self, prefix: str, *, after: str = "") -> Iterator[StoredObject]:
        """Yield the objects under a prefix in key order, beginning after the key `after`.

        A listing asks no single object: `sha256` may be None, `media_type` is guessed from the key's ending.
        """
        ...

    def link(self, key: str, *, expires_s: int, filename: str | None = None) -> str:
        """Return a signed URL for GET that expires. A folder's link is relative to the API's base URL."""
        ...

    def check(self) -> None:
        """Write, read and remove a small object; the round trip of `doctor` and `/readyz`.

        Raises:
            StorageUnavailable: with the reason.
        """
        ...
