"""Which models are loaded: those nobody waits for or asks for make room first, under the memory budget.

Only the device thread calls `use`, so the model that runs is never the one that is evicted.
"""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import structlog

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker import families
from pixelkiln_worker.choices import Demand, LastLoad, by_worth, leaving
from pixelkiln_worker.device import Device, Poisoned, is_out_of_memory, is_poisoned
from pixelkiln_worker.families.contract import Load, Model

log = structlog.get_logger(__name__)

RETRY_S = 10.0  # a model that did not load is not offered for so long: others may serve its jobs meanwhile


@dataclass(frozen=True, kw_only=True, slots=True)
class InUse:
    """A model ready to run. `load_ms` is 0 when it was resident already."""

    model: Model
    load_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Resident:
    """A loaded model: the device memory it took at load, how long that was, and the hash of its weights."""

    id: str
    footprint_bytes: int
    load_s: float
    sha256: str


@dataclass(slots=True)
class _Failure:
    """Why a model did not load, and when, in monotonic seconds; `alone` when no other worker can load it.

    One that `hung` is not tried again before its rest is over, whoever asks.
    """

    at: float
    reason: str
    alone: bool = False
    hung: bool = False
    rest_s: float = RETRY_S

    @property
    def lately(self) -> bool:
        return time.monotonic() - self.at < self.rest_s


class Residency:
    """The loaded models of one device.

    Args:
        device: where they are loaded.
        load: makes a model of an entry.
        on_load: hears of each load: the model, the seconds it took, whether another model left for it.
    """

    def __init__(
        self,
        device: Device,
        load: Load = families.load,
        on_load: Callable[[str, float, bool], None] = lambda model, took_s, switched: None,
    ) -> None:
        self._device = device
        self._load = load
        self._on_load = on_load
        self._models: OrderedDict[str, Model] = OrderedDict()  # least recently used first
        self._load_s: dict[str, float] = {}
        self._footprints: dict[str, int] = {}
        self._failures: dict[str, _Failure] = {}
        self._last_load: tuple[float, float] | None = None  # when it ended, how long it took
        self._demand = Demand()
        self._run_s: dict[str, float] = {}
        self._loading: tuple[str, float] | None = None  # the model, and when that began

    @property
    def resident(self) -> tuple[str, ...]:
        """The ids of the loaded models; safe from every thread."""
        return tuple(self._models.copy())

    def loaded(self, model_id: str) -> Model | None:
        """Return the model if it is loaded; it may be closed at any moment, except on the device thread."""
        return self._models.get(model_id)

    @property
    def residents(self) -> tuple[Resident, ...]:
        """The loaded models with what they cost; safe from every thread."""
        return tuple(
            Resident(
                id=name,
                footprint_bytes=self._footprints[name],
                load_s=self._load_s[name],
                sha256=str(model.identity.get("sha256", "")),
            )
            for name, model in self._models.copy().items()
        )

    @property
    def unavailable(self) -> dict[str, str]:
        """Why models did not load the last time they were tried, by id; safe from every thread."""
        return {name: failure.reason for name, failure in self._failures.copy().items()}

    @property
    def loading(self) -> tuple[str, float] | None:
        """The model that is being loaded, and for how many seconds by now; safe from every thread."""
        loading = self._loading
        return None if loading is None else (loading[0], time.monotonic() - loading[1])

    def rest(self, model_id: str, reason: str, rest_s: float) -> None:
        """Take a model whose loading hung for unavailable for a while; call before the first load."""
        self._failures[model_id] = _Failure(time.monotonic(), reason, hung=True, rest_s=rest_s)

    def load_s(self, model_id: str) -> float:
        """Return how long loading took the last time, in seconds; 0 when never loaded."""
        return self._load_s.get(model_id, 0.0)

    @property
    def loads_s(self) -> Mapping[str, float]:
        """How long each model took to load the last time; safe from every thread."""
        return self._load_s.copy()

    @property
    def runs_s(self) -> Mapping[str, float]:
        """The longest batch of each model so far, in seconds; safe from every thread."""
        return self._run_s.copy()

    @property
    def last_load(self) -> LastLoad:
        """The newest load; safe from every thread."""
        last = self._last_load
        return LastLoad() if last is None else LastLoad(ago_s=time.monotonic() - last[0], took_s=last[1])

    def ran(self, model_id: str, *, rows: int, run_s: float) -> None:
        """Learn from a batch that ran: what is asked for stays, and how long a batch may take."""
        self._demand.note(model_id, rows, time.monotonic())
        self._run_s[model_id] = max(run_s, self._run_s.get(model_id, 0.0))

    def resting(self, model_id: str) -> bool:
        """Whether loading failed so lately that its jobs should be left to others, where there are any."""
        failure = self._failures.get(model_id)
        return failure is not None and failure.lately and not failure.alone

    def nobody_loads(self, models: Collection[str]) -> bool:
        """Note which models no other worker can load either; True if any of them rested.

        Their jobs would wait in vain. Until the next try they are taken and fail with the reason at once: one
        load then answers for all that wait, not for a single batch.
        """
        woken = False
        for name, failure in self._failures.copy().items():
            woken |= name in models and self.resting(name)
            failure.alone = name in models
        return woken

    def use(self, entry: ModelEntry, *, waiting: Collection[str] = ()) -> InUse:
        """Return the model, loaded if need be; call on the device thread.

        Args:
            entry: the model.
            waiting: the models that have jobs waiting; if others must leave, these leave last.

        Raises:
            ModelUnavailable: the weights are missing, corrupt or not the named ones, or do not load.
            Poisoned: the device's context broke while loading.
        """
        model = self._models.get(entry.id)
        if model is not None:
            self._models.move_to_end(entry.id)
            return InUse(model=model, load_ms=0.0)
        failure = self._failures.get(entry.id)
        if failure is not None and failure.lately and (failure.alone or failure.hung):
            raise ModelUnavailable(failure.reason)
        before = len(self._models)
        self._make_room(self._footprints.get(entry.id, 0), waiting=waiting)
        began = time.monotonic()
        self._loading = (entry.id, began)
        try:
            model, footprint_bytes = self._open(entry)
        finally:
            self._loading = None
        took_s = time.monotonic() - began
        self._load_s[entry.id], self._footprints[entry.id] = took_s, footprint_bytes
        self._last_load = (began + took_s, took_s)
        self._models[entry.id] = model
        self._failures.pop(entry.id, None)
        log.info("model loaded", model=entry.id, load_s=round(took_s, 3), bytes=footprint_bytes)
        self._make_room(0, keep=entry.id, waiting=waiting)
        self._on_load(entry.id, took_s, len(self._models) <= before)
        return InUse(model=model, load_ms=took_s * 1_000)

    def evict_others(self, model_id: str) -> None:
        """Unload every model but this one, after it ran out of memory; call on the device thread."""
        for name in [name for name in self._models if name != model_id]:
            self._evict(name)
        self._collect()

    def close(self) -> None:
        """Unload everything; call on the device thread."""
        self.evict_others("")

    def _open(self, entry: ModelEntry) -> tuple[Model, int]:
        try:
            return self._load_with_room(entry)
        except Exception as error:
            log.exception("model did not load", model=entry.id)
            if is_poisoned(error):
                raise Poisoned(str(error)) from error
            found = error if isinstance(error, ModelUnavailable) else _unavailable(entry, error)
            before = self._failures.get(entry.id)
            alone = before is not None and before.alone
            self._failures[entry.id] = _Failure(time.monotonic(), found.message[:500], alone)
            self._collect()
            if found is error:
                raise
            raise found from error

    def _load_with_room(self, entry: ModelEntry) -> tuple[Model, int]:
        try:
            return self._measured(entry)
        except Exception as error:
            if not is_out_of_memory(error) or not self._models:
                raise
        self.evict_others("")  # outside the handler: the error's frames hold half a model
        return self._measured(entry)

    def _measured(self, entry: ModelEntry) -> tuple[Model, int]:
        """Load a model; beside it, what that took of the device's memory.

        Never less than the model says: one that keeps its weights on the host takes it when it runs.
        """
        before = self._device.allocated_bytes()
        model = self._load(entry, self._device)
        after = self._device.allocated_bytes()
        taken = after - before if before is not None and after is not None else 0
        return model, max(taken, model.footprint_bytes)

    def _make_room(
        self, needed_bytes: int, *, keep: str | None = None, waiting: Collection[str] = ()
    ) -> None:
        """Unload what must go; a model larger than the budget by itself is served alone."""
        order = by_worth(self._models, demand=self._demand, load_s=self.load_s, now_s=time.monotonic())
        gone = list(
            leaving(
                {name: self._footprints[name] for name in order},
                needed_bytes=needed_bytes,
                budget_bytes=self._device.memory_bytes,
                keep=keep,
                waiting=waiting,
            )
        )
        for name in gone:
            self._evict(name)
        if gone:
            self._collect()

    def _evict(self, name: str) -> None:
        model = self._models.pop(name)
        model.close()
        log.info("model evicted", model=name)

    def _collect(self) -> None:
        gc.collect()
        self._device.free_caches()


def _unavailable(entry: ModelEntry, error: Exception) -> ModelUnavailable:
    short = is_out_of_memory(error)
    why = "the memory of this worker's device does not hold it" if short else type(error).__name__
    return ModelUnavailable(f"{entry.id} did not load: {why}")
