"""The in-memory twin of the stores; the contract suite keeps it honest."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

from pixelkiln_shared.errors import NotFound, StorageUnavailable
from pixelkiln_shared.storage.contract import StoredObject
from pixelkiln_shared.storage.naming import checked_key, checked_prefix, media_type_of


class MemoryStorage:
    """Objects in a dict. Set `outage`, and every call raises `StorageUnavailable`."""

    def __init__(self) -> None:
        self.outage = False
        self._objects: dict[str, tuple[StoredObject, bytes]] = {}
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes | Path, *, media_type: str) -> StoredObject:
        """Store bytes, or a file's."""
        self._answer()
        content = data.read_bytes() if isinstance(data, Path) else bytes(data)
        stored = StoredObject(
            key=checked_key(key),
            size_bytes=len(content),
            media_type=media_type,
            modified_at=datetime.now(UTC),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        with self._lock:
            self._objects[key] = (stored, content)
        return stored

    def get(self, key: str) -> bytes:
        """Return the bytes.

        Raises:
            NotFound: no such key.
        """
        self._answer()
        found = self._objects.get(checked_key(key))
        if found is None:
            raise NotFound("no such file")
        return found[1]

    def head(self, key: str) -> StoredObject | None:
        """Return the object's facts, or None."""
        self._answer()
        found = self._objects.get(checked_key(key))
        return found[0] if found else None

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""
        self._answer()
        with self._lock:
            self._objects.pop(checked_key(key), None)

    def list(self, prefix: str, *, after: str = "") -> Iterator[StoredObject]:
        """Yield objects in key order; media types are guessed, as the real stores do."""
        self._answer()
        checked_prefix(prefix)
        with self._lock:
            found = sorted(
                (key, stored) for key, (stored, _) in self._objects.items() if key.startswith(prefix)
            )
        for key, stored in found:
            if key > after:
                yield StoredObject(
                    key=key,
                    size_bytes=stored.size_bytes,
                    media_type=media_type_of(key),
                    modified_at=stored.modified_at,
                )

    def link(self, key: str, *, expires_s: int, filename: str | None = None) -> str:
        """Return a URL that names the object; nothing answers it."""
        query: dict[str, str | int] = {"expires_s": expires_s}
        if filename is not None:
            query["filename"] = filename
        return f"memory:///{checked_key(key)}?{urlencode(query)}"

    def check(self) -> None:
        """Raise `StorageUnavailable` during an outage."""
        self._answer()

    def _answer(self) -> None:
        if self.outage:
            raise StorageUnavailable("the store is down")
