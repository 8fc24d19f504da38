"""Which models are loaded: least recently used ones make room, under the device's memory budget.

Only the device thread calls `use`, so the model that runs is never the one that is evicted.
"""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker import families
from pixelkiln_worker.device import OUT_OF_MEMORY, Device
from pixelkiln_worker.families.contract import Load, Model

log = structlog.get_logger(__name__)

RETRY_S = 10.0  # a model that did not load is not offered for so long: others may serve its jobs meanwhile


@dataclass(frozen=True, kw_only=True, slots=True)
class InUse:
    """A model ready to run. `load_ms` is 0 when it was resident already."""

    model: Model
    load_ms: float


class Residency:
    """The loaded models of one device."""

    def __init__(self, device: Device, load: Load = families.load) -> None:
        self._device = device
        self._load = load
        self._models: OrderedDict[str, Model] = OrderedDict()  # least recently used first
        self._load_s: dict[str, float] = {}
        self._footprints: dict[str, int] = {}
        self._failed_at: dict[str, float] = {}

    @property
    def resident(self) -> tuple[str, ...]:
        """The ids of the loaded models; safe from every thread."""
        return tuple(self._models.copy())

    def loaded(self, model_id: str) -> Model | None:
        """Return the model if it is loaded; it may be closed at any moment, except on the device thread."""
        return self._models.get(model_id)

    def load_s(self, model_id: str) -> float:
        """Return how long loading took the last time, in seconds; 0 when never loaded."""
        return self._load_s.get(model_id, 0.0)

    def resting(self, model_id: str) -> bool:
        """Whether loading failed so lately that the model should not be offered."""
        failed_at = self._failed_at.get(model_id)
        return failed_at is not None and time.monotonic() - failed_at < RETRY_S

    def use(self, entry: ModelEntry) -> InUse:
        """Return the model, loaded if need be; call on the device thread.

        Raises:
            ModelUnavailable: the weights are missing, corrupt or not the named ones, or do not load.
        """
        model = self._models.get(entry.id)
        if model is not None:
            self._models.move_to_end(entry.id)
            return InUse(model=model, load_ms=0.0)
        self._make_room(self._footprints.get(entry.id, 0))
        began = time.monotonic()
        model = self._open(entry)
        took_s = time.monotonic() - began
        self._models[entry.id] = model
        self._load_s[entry.id] = took_s
        self._footprints[entry.id] = model.footprint_bytes
        self._failed_at.pop(entry.id, None)
        log.info("model loaded", model=entry.id, load_s=round(took_s, 3), bytes=model.footprint_bytes)
        self._make_room(0, keep=entry.id)
        return InUse(model=model, load_ms=took_s * 1_000)

    def evict_others(self, model_id: str) -> None:
        """Unload every model but this one, after it ran out of memory; call on the device thread."""
        for name in [name for name in self._models if name != model_id]:
            self._evict(name)
        self._collect()

    def close(self) -> None:
        """Unload everything; call on the device thread."""
        self.evict_others("")

    def _open(self, entry: ModelEntry) -> Model:
        try:
            return self._load_with_room(entry)
        except Exception as error:
            self._failed_at[entry.id] = time.monotonic()
            log.exception("model did not load", model=entry.id)
            self._collect()
            if isinstance(error, ModelUnavailable):
                raise
            raise ModelUnavailable(f"{entry.id} did not load: {type(error).__name__}") from error

    def _load_with_room(self, entry: ModelEntry) -> Model:
        try:
            return self._load(entry, self._device)
        except Exception as error:
            if type(error).__name__ not in OUT_OF_MEMORY or not self._models:
                raise
        self.evict_others("")  # outside the handler: the error's frames hold half a model
        return self._load(entry, self._device)

    def _make_room(self, needed_bytes: int, *, keep: str | None = None) -> None:
        evicted = False
        while self._used_bytes() + needed_bytes > self._device.memory_bytes:
            oldest = next((name for name in self._models if name != keep), None)
            if oldest is None:  # larger than the budget by itself: serve it alone
                break
            self._evict(oldest)
            evicted = True
        if evicted:
            self._collect()

    def _used_bytes(self) -> int:
        return sum(model.footprint_bytes for model in self._models.values())

    def _evict(self, name: str) -> None:
        model = self._models.pop(name)
        model.close()
        log.info("model evicted", model=name)

    def _collect(self) -> None:
        gc.collect()
        self._device.free_caches()
