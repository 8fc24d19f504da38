"""A batch on the device: memory that runs out, bad rows, jobs that leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pixelkiln_shared.errors import JobCanceled, OutOfMemory
from pixelkiln_worker.compute import BatchWatch, Compute, Work
from pixelkiln_worker.device import Poisoned
from pixelkiln_worker.families.contract import Outcome, Task, Watch
from pixelkiln_worker.held import Gone, HeldJob
from tests.worker_processes import stub_spec


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@dataclass
class Small:
    """A model whose memory holds `capacity` jobs; `tried` are the sizes it was asked for."""

    capacity: int
    tried: list[int] = field(default_factory=list)
    footprint_bytes: int = 0
    identity: dict[str, Any] = field(default_factory=dict)
    max_rows: int = 8

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        self.tried.append(len(batch))
        if len(batch) > self.capacity:
            raise OutOfMemoryError("full")
        watch.step(1, 1)
        return [Outcome() for _ in batch]

    def close(self) -> None:
        pass


def works(count: int) -> list[Work]:
    specs = [stub_spec(str(index)) for index in range(count)]
    return [Work(HeldJob(spec=spec, attempt=1), Task(spec=spec)) for spec in specs]


@pytest.fixture
def compute() -> Compute:
    return Compute(lambda step, steps: None, lambda: None)


def run(
    compute: Compute, model: Small, batch: list[Work], make_room: Callable[[], None] = lambda: None
) -> None:
    compute.run(model, batch, key="key", make_room=make_room)


def test_a_batch_too_large_is_halved_until_it_fits(compute: Compute) -> None:
    model, batch = Small(2), works(8)
    run(compute, model, batch)
    assert all(isinstance(work.outcome, Outcome) for work in batch)
    assert model.tried == [8, 4, 2, 2, 4, 2, 2]


def test_what_fits_is_remembered_for_the_batch_key(compute: Compute) -> None:
    model = Small(2)
    run(compute, model, works(8))
    model.tried.clear()
    run(compute, model, works(8))
    assert max(model.tried) == 2


def test_a_single_job_gets_the_whole_device_before_it_fails(compute: Compute) -> None:
    model, batch = Small(0), works(1)
    run(compute, model, batch, make_room=lambda: setattr(model, "capacity", 1))
    assert isinstance(batch[0].outcome, Outcome)


def test_a_job_that_fits_nowhere_is_out_of_memory(compute: Compute) -> None:
    batch = works(2)
    run(compute, Small(0), batch)
    assert all(isinstance(work.outcome, OutOfMemory) for work in batch)


def test_a_model_is_asked_for_slower_settings_before_a_job_fails(compute: Compute) -> None:
    class Thrifty(Small):
        savings = 2

        def economize(self) -> bool:
            self.savings -= 1
            self.capacity = 1 if self.savings == 0 else 0
            return self.savings >= 0

    model, batch = Thrifty(0), works(1)
    run(compute, model, batch)
    assert isinstance(batch[0].outcome, Outcome)
    assert model.tried == [1, 1, 1, 1]


def test_a_model_that_can_save_no_more_fails_the_job_with_advice(compute: Compute) -> None:
    class Spent(Small):
        def economize(self) -> bool:
            return False

    batch = works(1)
    run(compute, Spent(0), batch)
    assert isinstance(batch[0].outcome, OutOfMemory)
    assert "a smaller size than 64 x 64" in batch[0].outcome.message


def test_advice_names_the_pictures_that_were_given_or_asked_for(compute: Compute) -> None:
    spec = stub_spec(count=3)
    task = Task(spec=spec, images={"image": np.zeros((50, 70, 3), np.uint8)})
    work = Work(HeldJob(spec=spec, attempt=1), task)
    run(compute, Small(0), [work])
    assert isinstance(work.outcome, OutOfMemory)
    assert "a smaller image than 70 x 50 or fewer pictures than 3" in work.outcome.message


def test_an_error_kept_for_a_job_holds_no_frames(compute: Compute) -> None:
    class Nested(Small):
        def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
            try:
                raise KeyError("inner")
            except KeyError:
                raise RuntimeError("outer") from None

    batch = works(1)
    run(compute, Nested(1), batch)
    error = batch[0].outcome
    assert isinstance(error, RuntimeError)
    assert error.__traceback__ is None
    assert error.__context__ is not None
    assert error.__context__.__traceback__ is None


def test_a_broken_device_ends_the_batch_and_leaves_its_jobs_without_outcome(compute: Compute) -> None:
    class Broken(Small):
        def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
            raise RuntimeError("CUDA error: device-side assert triggered")

    class Caught(Small):
        def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
            return [Outcome(), RuntimeError("CUDA error: device-side assert triggered"), Outcome()]

    for model in (Broken(8), Caught(8)):
        batch = works(3)
        with pytest.raises(Poisoned):
            run(compute, model, batch)
        assert [work.outcome for work in batch] == [None, None, None]
        assert compute.current is None


def test_the_run_under_way_is_known_and_forgotten(compute: Compute) -> None:
    seen = []

    class Looking(Small):
        def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
            seen.append(compute.current)
            return super().run(batch, watch)

    batch = works(1)
    run(compute, Looking(1), batch)
    assert seen[0] is not None
    assert seen[0].jobs == (batch[0].job,)
    assert compute.current is None


def test_a_model_that_returns_too_few_outcomes_fails_its_jobs(compute: Compute) -> None:
    class Forgetful(Small):
        def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
            return []

    batch = works(2)
    run(compute, Forgetful(8), batch)
    assert all(isinstance(work.outcome, ValueError) for work in batch)


def test_jobs_nobody_wants_are_not_run(compute: Compute) -> None:
    model, batch = Small(8), works(2)
    batch[0].job.gone = Gone.CANCELED
    run(compute, model, batch)
    assert model.tried == [1]
    assert batch[0].outcome is None


def test_previews_are_due_once_a_second_and_not_in_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pixelkiln_worker.compute.time.monotonic", lambda: now[0])
    gone, first, second = (work.job for work in works(3))
    watch = BatchWatch([gone, first, second], lambda step, steps: None)
    assert not watch.previews_due()
    now[0] = 101.1
    gone.gone = Gone.CANCELED
    watch.step(1, 9)  # its place in the batch stays that of its task
    assert list(watch.previews_due()) == [1, 2]
    assert not watch.previews_due()
    now[0] = 102.2
    assert list(watch.previews_due()) == [1, 2]


def test_only_the_newest_preview_is_kept() -> None:
    first, second = (work.job for work in works(2))
    watch = BatchWatch([first, second], lambda step, steps: None)
    for value in (1, 2):
        watch.preview(1, np.full((4, 4, 3), value, np.uint8))
    assert first.preview is None
    assert second.preview is not None
    assert second.preview[0, 0, 0] == 2


def test_a_watch_lets_jobs_go_one_by_one_and_stops_when_none_is_left() -> None:
    first, second = (work.job for work in works(2))
    watch = BatchWatch([first, second], lambda step, steps: None)
    watch.step(1, 3)
    first.gone = Gone.CANCELED
    watch.step(2, 3)
    assert (first.at_boundary, first.step, second.step) == (True, 1, 2)
    second.gone = Gone.LOST
    with pytest.raises(JobCanceled):
        watch.step(3, 3)
