"""The stub: as long as it says, and the same picture for the same job."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_worker import families
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Model, Outcome, Pixels, Task
from tests.worker_processes import stub_spec

CPU = Device(name="cpu", kind="cpu", memory_bytes=10**9, dtype_name="float32", threads=1)


class Steps:
    """A watch that counts."""

    def __init__(self, due: Sequence[int] = ()) -> None:
        self.seen: list[tuple[int, int]] = []
        self.previews: list[tuple[int, Pixels]] = []
        self.due = due

    def step(self, step: int, steps: int) -> None:
        self.seen.append((step, steps))

    def left(self) -> Sequence[int]:
        return ()

    def previews_due(self) -> Sequence[int]:
        return self.due

    def preview(self, index: int, pixels: Pixels) -> None:
        self.previews.append((index, pixels))


@pytest.fixture
def stub() -> Model:
    return families.load(Catalogue.load(stub=True).get("stub"), CPU)


def outcomes(stub: Model, *specs: JobSpec) -> list[Outcome]:
    made = stub.run([Task(spec=spec) for spec in specs], Steps())
    return [outcome for outcome in made if isinstance(outcome, Outcome)]


def test_a_picture_does_not_depend_on_its_batch(stub: Model) -> None:
    one, other = (stub_spec(prompt, device_ms=0, per_item_ms=0) for prompt in ("a", "b"))
    [alone] = outcomes(stub, one)
    together = outcomes(stub, other, one)
    assert np.array_equal(alone.pictures[0].pixels, together[1].pictures[0].pixels)
    assert not np.array_equal(together[0].pictures[0].pixels, together[1].pictures[0].pixels)


def test_each_picture_of_a_job_has_its_own_seed(stub: Model) -> None:
    [made] = outcomes(stub, stub_spec(seed=7, count=3, device_ms=0, per_item_ms=0))
    assert [picture.seed for picture in made.pictures] == [7, 8, 9]
    assert len({picture.pixels.tobytes() for picture in made.pictures}) == 3


def test_a_batch_takes_the_device_time_and_more_for_each_row(stub: Model) -> None:
    began = time.monotonic()
    outcomes(stub, stub_spec(count=2, device_ms=30, per_item_ms=20), stub_spec(device_ms=30, per_item_ms=20))
    assert 0.09 <= time.monotonic() - began < 0.5


def test_every_step_is_reported(stub: Model) -> None:
    watch = Steps()
    stub.run([Task(spec=stub_spec(steps=3, device_ms=3))], watch)
    assert watch.seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("mishap", "error"), [("batch", ValueError), ("oom", RuntimeError)])
def test_what_goes_wrong_goes_wrong_for_the_whole_batch(
    stub: Model, mishap: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        stub.run([Task(spec=stub_spec()), Task(spec=stub_spec(f"[fail={mishap}]"))], Steps())


def test_a_mark_in_the_prompt_and_an_option_do_the_same(stub: Model) -> None:
    made = stub.run(
        [Task(spec=stub_spec("[fail=error]", device_ms=0)), Task(spec=stub_spec(fail="error", device_ms=0))],
        Steps(),
    )
    assert all(isinstance(outcome, ValueError) for outcome in made)


def test_previews_are_given_where_they_are_due_and_only_between_steps(stub: Model) -> None:
    specs = [stub_spec(prompt, steps=3, device_ms=0, per_item_ms=0) for prompt in ("a", "b")]
    watch = Steps(due=[1])
    [_, made] = stub.run([Task(spec=spec) for spec in specs], watch)
    assert [index for index, _ in watch.previews] == [1, 1]
    assert isinstance(made, Outcome)
    assert np.array_equal(watch.previews[0][1], made.pictures[0].pixels[::4, ::4])
    quick = Steps(due=[0])
    stub.run([Task(spec=stub_spec(steps=1, device_ms=0, per_item_ms=0))], quick)
    assert quick.previews == []


def test_rows_beyond_the_knee_take_longer(stub: Model) -> None:
    began = time.monotonic()
    outcomes(stub, *(stub_spec(str(i), device_ms=1, per_item_ms=1, knee=2, knee_ms=60) for i in range(4)))
    assert time.monotonic() - began >= 0.125
