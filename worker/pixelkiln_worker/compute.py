"""One batch on the device: whole if it fits, else in parts; one bad job never takes others with it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from pixelkiln_shared.errors import JobCanceled, OutOfMemory
from pixelkiln_worker.device import Poisoned, is_out_of_memory, is_poisoned
from pixelkiln_worker.families.contract import Frugal, Model, Outcome, Pixels, Task
from pixelkiln_worker.held import HeldJob

log = structlog.get_logger(__name__)

PREVIEW_S = 1.0  # a job that takes no longer shows its result instead; a second is also how often eyes ask
_KEYS_KEPT = 256


@dataclass(slots=True, eq=False)
class Work:
    """A held job with what the model needs of it and, at last, what it came to. Times are milliseconds."""

    job: HeldJob
    task: Task
    outcome: Outcome | Exception | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """A forward pass under way; `began` is monotonic seconds."""

    jobs: tuple[HeldJob, ...]
    began: float


class BatchWatch:
    """The running model's line to the outside: notes steps, lets unwanted jobs leave, never waits."""

    def __init__(self, jobs: Sequence[HeldJob], on_step: Callable[[int, int], None]) -> None:
        self._all = tuple(jobs)
        self._jobs = list(jobs)
        self._on_step = on_step
        self._preview_at = time.monotonic() + PREVIEW_S

    def step(self, step: int, steps: int) -> None:
        """See `families.contract.Watch`."""
        self._on_step(step, steps)
        for job in [job for job in self._jobs if not job.wanted]:
            job.at_boundary = True
            self._jobs.remove(job)
        for job in self._jobs:
            job.step, job.steps = step, steps
        if not self._jobs:
            raise JobCanceled

    def previews_due(self) -> Sequence[int]:
        """See `families.contract.Watch`: all jobs still wanted, at most once in `PREVIEW_S`."""
        now = time.monotonic()
        if now < self._preview_at:
            return ()
        self._preview_at = now + PREVIEW_S
        return [index for index, job in enumerate(self._all) if job.wanted]

    def preview(self, index: int, pixels: Pixels) -> None:
        """See `families.contract.Watch`: keeps the newest; another thread encodes and tells it."""
        self._all[index].preview = pixels


class Compute:
    """Runs batches, on the device thread; remembers how many jobs of a batch key the memory holds.

    Attributes:
        current: the forward pass under way, for the watchdog; None when the device is idle.
    """

    def __init__(self, on_step: Callable[[int, int], None], free_caches: Callable[[], None]) -> None:
        self._on_step = on_step
        self._free_caches = free_caches
        self._fits: OrderedDict[str, int] = OrderedDict()
        self.current: Run | None = None

    def run(self, model: Model, works: Sequence[Work], *, key: str, make_room: Callable[[], None]) -> None:
        """Give every work its outcome; those that left on the way have none.

        Args:
            key: the batch key, by which a size that did not fit is remembered.
            make_room: unloads other models, for a job that does not even fit alone.

        Raises:
            Poisoned: the device's context is broken; works without an outcome are the suspects.
        """
        size = self._fits.get(key, len(works))
        for first in range(0, len(works), size):
            self._attempt(model, works[first : first + size], key, make_room)

    def _attempt(self, model: Model, works: Sequence[Work], key: str, make_room: Callable[[], None]) -> None:
        works = [work for work in works if work.job.wanted]
        if not works:
            return
        error = self._run_once(model, works)
        # from here on the traceback is dropped: its frames hold the tensors that filled the memory
        if error is None:
            return
        if is_out_of_memory(error):
            self._after_out_of_memory(model, works, key, make_room)
        elif len(works) == 1:
            works[0].outcome = error
        else:
            log.warning("a batch failed; its jobs run one by one", jobs=[work.job.id for work in works])
            for work in works:
                self._attempt(model, [work], key, make_room)

    def _run_once(self, model: Model, works: Sequence[Work]) -> Exception | None:
        jobs = [work.job for work in works]
        watch = BatchWatch(jobs, self._on_step)
        for job in jobs:
            job.started = True
        self.current = Run(tuple(jobs), time.monotonic())
        try:
            outcomes = model.run([work.task for work in works], watch)
            for outcome in outcomes:  # a family may catch what one job raised, and hand that back
                if isinstance(outcome, Exception) and is_poisoned(outcome):
                    raise outcome
            for work, outcome in zip(works, outcomes, strict=True):
                work.outcome = outcome
        except JobCanceled:
            return None
        except Exception as error:
            log.warning("the model raised", jobs=[job.id for job in jobs], exc_info=True)
            if is_poisoned(error):
                raise Poisoned(str(error)) from error
            return _bare(error)
        finally:
            self.current = None
        return None

    def _after_out_of_memory(
        self, model: Model, works: Sequence[Work], key: str, make_room: Callable[[], None]
    ) -> None:
        half = len(works) // 2
        if half == 0:
            works[0].outcome = self._last_tries(model, works, make_room)
            return
        self._free_caches()
        self._fits[key] = half
        self._fits.move_to_end(key)
        while len(self._fits) > _KEYS_KEPT:
            self._fits.popitem(last=False)
        self._attempt(model, works[:half], key, make_room)
        self._attempt(model, works[half:], key, make_room)

    def _last_tries(
        self, model: Model, works: Sequence[Work], make_room: Callable[[], None]
    ) -> Outcome | Exception | None:
        """Run one job again with all the memory there is, then ever more frugally, as the model can."""
        make_room()
        while (error := self._run_once(model, works)) is not None:
            if not is_out_of_memory(error):
                return error
            self._free_caches()
            if not (isinstance(model, Frugal) and model.economize()):
                return OutOfMemory(_advice(works[0].task))
            log.warning("memory is short; the model goes on with slower settings", job=works[0].job.id)
        return works[0].outcome


def _bare(error: Exception) -> Exception:
    """Return the error without tracebacks, its causes' included: their frames hold what filled the memory."""
    link: BaseException | None = error
    while link is not None:
        link.with_traceback(None)
        link = link.__cause__ or link.__context__
    return error


def _advice(task: Task) -> str:
    """Say what to ask for instead of what did not fit even alone."""
    width, height = task.spec.input.get("width"), task.spec.input.get("height")
    wishes = [f"a smaller size than {width} x {height}"] if width and height else []
    wishes += [f"a smaller {name} than {p.shape[1]} x {p.shape[0]}" for name, p in task.images.items()]
    if task.spec.rows > 1:
        wishes.append(f"fewer pictures than {task.spec.rows} in one job")
    wish = " or ".join(wishes) or "less"
    return f"the device's memory does not hold this job, even alone; ask for {wish} (fewer steps save none)"
