"""Rows that leave a batch under way: the others' pictures stay what they are, and cost less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import families
from pixelkiln_worker.families import diffusion
from pixelkiln_worker.families.contract import Outcome, Task
from pixelkiln_worker.families.diffusion import Diffusion
from tests import tiny_models
from tests.tiny_models import CPU, Steps, generate_task, generator_entry
from tests.tiny_pipelines import edit_task

SCHEDULERS = (
    "ddim",
    "dpmpp-2m",
    "dpmpp-2m-sde",
    "dpmpp-singlestep",
    "euler-ancestral",
    "heun",
    "lcm",
    "lms",
    "pndm",
    "unipc",
)
STEPS = 6


class Cancels(Steps):
    """A watch in which some tasks leave at a step."""

    def __init__(self, gone: Sequence[int], at_step: int) -> None:
        super().__init__()
        self._gone, self._at_step = gone, at_step

    def left(self) -> Sequence[int]:
        return self._gone if self.seen and self.seen[-1][0] >= self._at_step else ()


def load(build: Callable[[Path], Path], folder: Path, **fields: Any) -> Diffusion:
    options = {"scheduler": SCHEDULERS}
    return diffusion.load(generator_entry(build(folder), options=options, **fields), CPU)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Diffusion:
    kinds = (Kind.GENERATE, Kind.EDIT)
    return load(tiny_models.stable_diffusion, tmp_path_factory.mktemp("sd"), kinds=kinds)


@contextmanager
def rows_run(model: Diffusion) -> Iterator[list[int]]:
    """Give the rows of each call of the network, without those that guidance adds."""
    seen: list[int] = []
    network = model._pipelines.base.unet
    hook = network.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0] // 2))
    yield seen
    hook.remove()


def pictures(found: Sequence[Outcome | Exception], index: int) -> list[np.ndarray]:
    outcome = found[index]
    assert isinstance(outcome, Outcome), outcome
    return [picture.pixels for picture in outcome.pictures]


def assert_alike(one: Sequence[np.ndarray], two: Sequence[np.ndarray]) -> None:
    """As a picture made alone and in a batch: a few of the 8-bit values may differ, by one."""
    assert len(one) == len(two) > 0
    for left, right in zip(one, two, strict=True):
        difference = np.abs(left.astype(int) - right.astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.001


def check(model: Diffusion, tasks: Sequence[Task]) -> list[int]:
    """The second of three tasks leaves after two steps; return the rows of each call of the network."""
    whole = model.run(tasks, Steps())
    with rows_run(model) as seen:
        found = model.run(tasks, Cancels([1], at_step=2))
    for index in (0, 2):
        assert_alike(pictures(found, index), pictures(whole, index))
    return seen


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_others_get_the_pictures_they_would_have_got(sd: Diffusion, scheduler: str) -> None:
    options = {"scheduler": scheduler}
    counts = {"steps": STEPS, "options": options}
    tasks = [
        generate_task("a red house", seed=1, **counts),
        generate_task("two boats", seed=2, count=2, **counts),
        generate_task("x", seed=5, **counts),
    ]
    seen = check(sd, tasks)
    assert set(seen[:2]) == {4}
    assert set(seen[3:]) == {2}


def test_rows_leave_an_edit_too(sd: Diffusion) -> None:
    seen = check(sd, [edit_task(word, seed=n, steps=STEPS) for n, word in enumerate(("a", "b", "c"))])
    assert (seen[0], seen[-1]) == (3, 2)


def test_rows_leave_a_pipeline_with_more_conditions(tmp_path: Path) -> None:
    model = load(tiny_models.stable_diffusion_xl, tmp_path)
    seen = check(model, [generate_task(word, seed=n, steps=STEPS) for n, word in enumerate(("a", "b", "c"))])
    assert (seen[0], seen[-1]) == (3, 2)


@pytest.mark.parametrize("build", [tiny_models.stable_diffusion_3, tiny_models.flux])
def test_where_rows_cannot_leave_the_batch_runs_on_unharmed(
    build: Callable[[Path], Path], tmp_path: Path
) -> None:
    model = diffusion.load(generator_entry(build(tmp_path)), CPU)
    tasks = [generate_task(word, seed=number, steps=4) for number, word in enumerate(("a", "b", "c"))]
    whole, found = model.run(tasks, Steps()), model.run(tasks, Cancels([1], at_step=2))
    for index in (0, 2):
        assert_alike(pictures(found, index), pictures(whole, index))


def test_the_shipped_generator_spends_less_on_a_batch_that_half_left() -> None:
    entry = Catalogue.load().get("toyworld")
    model = families.load(entry, CPU)
    assert isinstance(model, Diffusion)
    fields = dict(entry.defaults) | {"count": 1, "steps": STEPS}
    tasks = [
        Task(
            spec=JobSpec(
                id=f"j{n}",
                kind=Kind.GENERATE,
                model="toyworld",
                tenant="t",
                input=fields | {"prompt": f"a house and {n} trees", "seed": n},
            )
        )
        for n in range(4)
    ]
    whole = model.run(tasks, Steps())
    with rows_run(model) as seen:
        found = model.run(tasks, Cancels([0, 2], at_step=2))
    assert seen == [4, 4, 2, 2, 2, 2]
    for index in (1, 3):
        assert_alike(pictures(found, index), pictures(whole, index))
