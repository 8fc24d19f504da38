"""What models worked out about pictures, kept in the storage for all workers ("embeddings").

It spares work and is never needed: whatever goes wrong here costs one pass of an encoder, not a job. The
device thread never waits for it: it is fetched with a job's pictures and stored after the result was sent.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from pixelkiln_shared import keys
from pixelkiln_shared.errors import NotFound, Unavailable
from pixelkiln_shared.storage.contract import Storage
from pixelkiln_worker.families.contract import Memory, Model, Remembers, Task

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/vnd.safetensors"
SWEEP_S = 3_600.0


class Recall:
    """Reads and keeps memories, and sweeps old ones out of where it writes; safe from every thread."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._swept_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def prepare(self, task: Task, model: Model | None) -> Task:
        """Return the task with what is kept of its picture, if the model is one that remembers."""
        if task.image is None or not isinstance(model, Remembers):
            return task
        key = model.memory_key(task)
        data = None if model.at_hand(key) else self._read(keys.embedding_key(task.spec.tenant, key))
        return replace(task, memory=Memory(key=key, data=data))

    def keep(self, tenant: str, memory: Memory | None) -> None:
        """Store a memory that a model made; then, once an hour, forget the tenant's old ones."""
        if memory is None or memory.data is None:
            return
        try:
            key = keys.embedding_key(tenant, memory.key)
            self._storage.put(key, memory.data, media_type=MEDIA_TYPE)
            if self._is_time_to_sweep(tenant):
                self.sweep(tenant)
        except Unavailable as error:
            log.info("an embedding was not kept", error=error.message)

    def sweep(self, tenant: str) -> int:
        """Delete the tenant's memories older than `keys.EMBEDDING_S`; return how many went.

        Raises:
            StorageUnavailable: the rest waits for the next time.
        """
        oldest_kept = datetime.now(UTC) - timedelta(seconds=keys.EMBEDDING_S)
        listed = self._storage.list(keys.embeddings_prefix(tenant))
        old = [stored.key for stored in listed if stored.modified_at < oldest_kept]
        for key in old:
            self._storage.delete(key)
        return len(old)

    def _read(self, key: str) -> bytes | None:
        try:
            return self._storage.get(key)
        except NotFound:
            return None
        except Unavailable as error:
            log.info("an embedding could not be read", error=error.message)
            return None

    def _is_time_to_sweep(self, tenant: str) -> bool:
        now = time.monotonic()
        with self._lock:
            due = now - self._swept_at.get(tenant, -SWEEP_S) >= SWEEP_S
            if due:
                self._swept_at[tenant] = now
        return due
