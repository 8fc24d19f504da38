"""Pictures from noise alone, by real pipelines with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelkiln_shared.errors import InvalidInput, JobCanceled, ModelUnavailable
from pixelkiln_worker.families import unconditional
from pixelkiln_worker.families.contract import Outcome, Pixels
from tests import tiny_models, tiny_pipelines
from tests.tiny_models import CPU, Steps, generate_task, generator_entry
from tests.tiny_pipelines import Looks

SHAPE: dict[str, Any] = {"prompt": None, "width": 16, "height": 24}


@pytest.fixture(scope="module", params=["ddpm", "ddim"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> unconditional.Unconditional:
    folder = tmp_path_factory.mktemp("noise") / request.param
    entry = generator_entry(
        tiny_pipelines.unconditional(folder, ddim=request.param == "ddim"),
        family="unconditional",
        prompt="ignored",
        options={"scheduler": ("ddim", "dpmpp-2m", "euler-ancestral")},
        defaults={"width": 16, "height": 16, "steps": 3},
    )
    return unconditional.load(entry, CPU)


def pictures(found: Outcome | Exception) -> list[Pixels]:
    assert isinstance(found, Outcome), found
    return [picture.pixels for picture in found.pictures]


def test_a_batch_gives_the_pictures_of_single_runs(model: unconditional.Unconditional) -> None:
    tasks = [generate_task(seed=1, **SHAPE), generate_task(seed=5, count=5, **SHAPE)]
    watch = Steps()
    together = [pictures(found) for found in model.run(tasks, watch)]
    assert watch.seen == [(step, 6) for step in range(1, 7)]  # six rows in passes of four
    assert [len(made) for made in together] == [1, 5]
    for seed, made in [(1, together[0][0]), *zip(range(5, 10), together[1], strict=True)]:
        (alone,) = pictures(model.run([generate_task(seed=seed, **SHAPE)], Steps())[0])
        assert made.shape == (24, 16, 3)
        assert np.abs(made.astype(int) - alone).max() <= 1
        assert made.std() > 1


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "euler-ancestral"])
def test_another_scheduler_gives_another_picture(model: unconditional.Unconditional, name: str) -> None:
    task = generate_task(**SHAPE, steps=5)
    plain = pictures(model.run([task], Steps())[0])[0]
    other = generate_task(**SHAPE, steps=5, options={"scheduler": name})
    made = pictures(model.run([other], Steps())[0])[0]
    assert (name == "ddim" and model.identity["scheduler"] == "DDIMScheduler") or not np.array_equal(
        plain, made
    )


def test_a_cancel_stops_between_steps(model: unconditional.Unconditional) -> None:
    watch = Steps(fail_at=2, error=JobCanceled())
    with pytest.raises(JobCanceled):
        model.run([generate_task(**SHAPE, steps=5)], watch)
    assert watch.seen == [(1, 5), (2, 5)]


def test_previews_come_to_look_like_the_result(model: unconditional.Unconditional) -> None:
    watch = Looks((1,))
    tasks = [generate_task(seed=1, **SHAPE, steps=5), generate_task(seed=2, **SHAPE, steps=5)]
    made = pictures(model.run(tasks, watch)[1])[0]
    assert [index for index, _ in watch.previews] == [1] * 5
    far, near = (np.abs(watch.previews[place][1].astype(int) - made).mean() for place in (0, -1))
    assert near < far


def test_a_size_the_network_cannot_draw_is_refused(model: unconditional.Unconditional) -> None:
    found = model.run([generate_task(prompt=None, width=17, height=16)], Steps())
    assert isinstance(found[0], InvalidInput)


def test_a_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    entry = generator_entry(tiny_models.stable_diffusion(tmp_path / "sd"), family="unconditional")
    with pytest.raises(ModelUnavailable, match="StableDiffusionPipeline is not one of"):
        unconditional.load(entry, CPU)
