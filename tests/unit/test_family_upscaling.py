"""Pictures made larger: by diffusion pipelines with random weights, and by interpolation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.errors import InvalidInput, JobCanceled, ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import families
from pixelkiln_worker.families import resampling, upscaling
from pixelkiln_worker.families.contract import Model, Outcome, Pixels, Task
from tests import tiny_models, tiny_pipelines
from tests.tiny_models import CPU, Steps, generator_entry
from tests.tiny_pipelines import scene, upscale_task

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "upscaler": tiny_pipelines.upscaler,
    "latent upscaler": tiny_pipelines.latent_upscaler,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, upscaling.Upscaler]:
    root = tmp_path_factory.mktemp("pipelines")
    entries = {
        name: generator_entry(
            build(root / name), family="upscaling", kinds=(Kind.UPSCALE,), options={"noise_level": (10, 40)}
        )
        for name, build in BUILDERS.items()
    }
    return {name: upscaling.load(entry, CPU) for name, entry in entries.items()}


def picture(model: Model | upscaling.Upscaler, task: Task) -> Pixels:
    (found,) = model.run([task], Steps())
    assert isinstance(found, Outcome), found
    return found.pictures[0].pixels


@pytest.mark.parametrize("name", BUILDERS)
def test_a_batch_of_several_sizes_gives_the_pictures_of_single_runs(
    name: str, models: dict[str, upscaling.Upscaler]
) -> None:
    model = models[name]
    tasks = [
        upscale_task(scene(16, 12), seed=1),
        upscale_task(scene(10, 20), seed=2, prompt="a red house", negative_prompt="fog"),
        upscale_task(255 - scene(16, 12), seed=3),
    ]
    watch = Steps()
    together = model.run(tasks, watch)
    assert watch.seen == [(step, 4) for step in range(1, 5)]  # two sizes, two steps each
    for task, found in zip(tasks, together, strict=True):
        assert isinstance(found, Outcome), found
        assert found.detail == {"scale": model.scale}
        assert task.image is not None
        height, width = task.image.shape[:2]
        assert found.pictures[0].pixels.shape == (height * model.scale, width * model.scale, 3)
        difference = np.abs(found.pictures[0].pixels.astype(int) - picture(model, task))
        assert difference.max() <= 1
        assert found.pictures[0].pixels.std() > 1


def test_a_scale_the_model_does_not_do_fails_that_job_alone(models: dict[str, upscaling.Upscaler]) -> None:
    tasks = [upscale_task(scale=4), upscale_task(scale=2)]
    wrong, right = models["upscaler"].run(tasks, Steps())
    assert isinstance(wrong, InvalidInput)
    assert "2 times larger, not 4" in wrong.message
    assert isinstance(right, Outcome)


def test_a_cancel_stops_between_steps(models: dict[str, upscaling.Upscaler]) -> None:
    before = picture(models["upscaler"], upscale_task(steps=4))
    watch = Steps(fail_at=2, error=JobCanceled())
    with pytest.raises(JobCanceled):
        models["upscaler"].run([upscale_task(steps=4)], watch)
    assert watch.seen == [(1, 4), (2, 4)]
    assert np.array_equal(before, picture(models["upscaler"], upscale_task(steps=4)))


def test_options_of_the_catalogue_reach_the_pipeline(models: dict[str, upscaling.Upscaler]) -> None:
    little, much = (
        picture(models["upscaler"], upscale_task(options={"noise_level": level})) for level in (10, 40)
    )
    assert not np.array_equal(little, much)


def test_a_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    entry = generator_entry(tiny_models.stable_diffusion(tmp_path / "sd"), family="upscaling")
    with pytest.raises(ModelUnavailable, match="StableDiffusionPipeline is not one of"):
        upscaling.load(entry, CPU)


# -------------------------------------------------------------------------------------------- interpolation


@pytest.fixture
def lanczos() -> Model:
    return families.load(Catalogue.load().get("classical-lanczos", Kind.UPSCALE), CPU)


def test_lanczos_makes_any_picture_larger(lanczos: Model) -> None:
    image = scene(40, 30)
    made = picture(lanczos, upscale_task(image, scale=3))
    assert made.shape == (120, 90, 3)
    assert np.abs(made[1::3, 1::3].astype(int) - image).mean() < 2  # the old pixels are still there
    assert picture(lanczos, upscale_task(image)).shape == (80, 60, 3)


def test_an_unknown_method_is_refused() -> None:
    entry = Catalogue.load().get("classical-lanczos").model_copy(update={"method": "magic"})
    with pytest.raises(ModelUnavailable, match="magic"):
        resampling.load(entry, CPU)
