"""A store that is silent costs the API a few of its threads, not all of them.

A call to a store that is away may take half a minute before it gives up. Without this, as many uploads as
there are threads keep everybody else waiting for as long, those too who only look at a job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pixelkiln_shared.errors import NotFound, StorageUnavailable
from pixelkiln_shared.ledger.silence import Silence
from pixelkiln_shared.storage.contract import Storage, StoredObject

PLACES = 40  # calls at once, half of the API's threads
WAIT_S = 1.0  # for a place; a store that ends no call meanwhile is silent


class ImpatientStorage:
    """A `Storage` that fails at once while the one behind it is silent; one call a second tries it again."""

    def __init__(self, storage: Storage, *, places: int = PLACES, wait_s: float = WAIT_S) -> None:
        self._storage = storage
        self._silence = Silence()
        self._places = threading.BoundedSemaphore(places)
        self._wait_s = wait_s
        self._heard_at = time.monotonic()

    def put(self, key: str, data: bytes | Path, *, media_type: str) -> StoredObject:
        """Store bytes; see `Storage.put`."""
        with self._calling():
            return self._storage.put(key, data, media_type=media_type)

    def get(self, key: str) -> bytes:
        """Return an object; see `Storage.get`."""
        with self._calling():
            return self._storage.get(key)

    def head(self, key: str) -> StoredObject | None:
        """Return an object's facts; see `Storage.head`."""
        with self._calling():
            return self._storage.head(key)

    def delete(self, key: str) -> None:
        """Remove an object; see `Storage.delete`."""
        with self._calling():
            self._storage.delete(key)

    def list(self, prefix: str, *, after: str = "") -> Iterator[StoredObject]:
        """Yield the objects under a prefix; see `Storage.list`. Holds its place until the end."""
        with self._calling():
            yield from self._storage.list(prefix, after=after)

    def link(self, key: str, *, expires_s: int, filename: str | None = None) -> str:
        """Return a signed URL; asks nobody."""
        return self._storage.link(key, expires_s=expires_s, filename=filename)

    def check(self) -> None:
        """Write, read and remove a small object, silent or not: whoever asks wants to know."""
        self._storage.check()

    @contextmanager
    def _calling(self) -> Iterator[None]:
        if not self._silence.may_ask():
            raise StorageUnavailable("the store was silent a moment ago")
        self._take_place()
        try:
            yield
        except StorageUnavailable:
            self._silence.begin()
            raise
        except NotFound:
            self._hear()
            raise
        else:
            self._hear()
        finally:
            self._places.release()

    def _take_place(self) -> None:
        began = time.monotonic()
        if self._places.acquire(timeout=self._wait_s):
            return
        if self._heard_at < began:
            self._silence.begin()
        raise StorageUnavailable("more calls to the store are under way than it answers")

    def _hear(self) -> None:
        self._heard_at = time.monotonic()
        self._silence.end()
