"""One batch on the device: whole if it fits, else in parts; one bad job never takes others with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import structlog

from pixelkiln_shared.errors import JobCanceled, OutOfMemory
from pixelkiln_worker.device import Poisoned, is_out_of_memory, is_poisoned
from pixelkiln_worker.families.contract import Frugal, Model, Outcome, Pixels, Task
from pixelkiln_worker.held import HeldJob
from pixelkiln_worker.sizes import Sizes

log = structlog.get_logger(__name__)

PREVIEW_S = 1.0  # a job that takes no longer shows its result instead; a second is also how often eyes ask


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

    def left(self) -> Sequence[int]:
        """See `families.contract.Watch`."""
        if len(self._jobs) == len(self._all):
            return ()
        return [index for index, job in enumerate(self._all) if job not in self._jobs]

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
    """Runs batches, on the device thread; learns how many rows of a batch key to run at once.

    Attributes:
        sizes: what was learned.
        current: the forward pass under way, for the watchdog; None when the device is idle.
    """

    def __init__(self, on_step: Callable[[int, int], None], free_caches: Callable[[], None]) -> None:
        self.sizes = Sizes()
        self.current: Run | None = None
        self._on_step = on_step
        self._free_caches = free_caches
        self._part = (0, 1)  # number and count of the parts in which the batch runs

    def run(self, model: Model, works: Sequence[Work], *, key: str, make_room: Callable[[], None]) -> None:
        """Give every work its outcome; those that left on the way have none.

        Args:
            key: the batch key, by which sizes are learned.
            make_room: unloads other models, for a job that does not even fit alone.

        Raises:
            Poisoned: the device's context is broken; works without an outcome are the suspects.
        """
        parts = list(_parts(works, *self.sizes.plan(key, model.max_rows, _rows(works))))
        for number, part in enumerate(parts):
            self._part = number, len(parts)
            self._attempt(model, part, key, make_room)

    def _step(self, step: int, steps: int) -> None:
        number, count = self._part
        self._on_step(number * steps + step, count * steps)

    def _attempt(self, model: Model, works: Sequence[Work], key: str, make_room: Callable[[], None]) -> None:
        works = [work for work in works if work.job.wanted]
        if not works:
            return
        began = time.monotonic()
        error = self._run_once(model, works)
        ran_whole = all(isinstance(work.outcome, Outcome) and work.job.wanted for work in works)
        if ran_whole and not works[0].job.spec.deterministic:
            self.sizes.ran(key, _rows(works), time.monotonic() - began)
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
        watch = BatchWatch(jobs, self._step)
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
            return bare(error)
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
        self.sizes.too_large(key, _rows(works))
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


def _rows(works: Sequence[Work]) -> int:
    return sum(work.job.spec.rows for work in works)


def _parts(works: Sequence[Work], first_rows: int, rows: int) -> Iterator[list[Work]]:
    """Cut a batch into parts of at most so many rows; a job that has more is a part by itself."""
    part: list[Work] = []
    room = first_rows
    for work in works:
        if part and _rows(part) + work.job.spec.rows > room:
            yield part
            part, room = [], rows
        part.append(work)
    yield part


def bare(error: Exception) -> Exception:
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
