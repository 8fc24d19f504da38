"""Image to image and inpainting by real pipelines with random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pixelkiln_shared.errors import InvalidInput, JobCanceled, ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.families import diffusion
from pixelkiln_worker.families.contract import Outcome, Pixels, Task
from pixelkiln_worker.families.inpainting import Cells, joined, mask_of
from tests import tiny_models, tiny_pipelines
from tests.tiny_models import CPU, SIDE_PX, Steps, generate_task, generator_entry
from tests.tiny_pipelines import edit_task, mask_picture, scene

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "sd": tiny_models.stable_diffusion,
    "sdxl": tiny_models.stable_diffusion_xl,
    "sd3": tiny_models.stable_diffusion_3,
    "flux": tiny_models.flux,
    "nine channels": tiny_pipelines.inpainting_network,
}
KINDS = (Kind.GENERATE, Kind.EDIT)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, diffusion.Diffusion]:
    root = tmp_path_factory.mktemp("pipelines")
    return {
        name: diffusion.load(generator_entry(build(root / name), kinds=KINDS), CPU)
        for name, build in BUILDERS.items()
    }


@pytest.fixture(scope="module")
def sd(models: dict[str, diffusion.Diffusion]) -> diffusion.Diffusion:
    return models["sd"]


@pytest.fixture(scope="module")
def thorough(tmp_path_factory: pytest.TempPathFactory) -> diffusion.Diffusion:
    folder = tiny_models.stable_diffusion(tmp_path_factory.mktemp("sd") / "sd")
    return diffusion.load(generator_entry(folder, kinds=KINDS, options={"rounds": (3, 1)}), CPU)


def pictures(model: diffusion.Diffusion, tasks: Sequence[Task], watch: Steps | None = None) -> list[Pixels]:
    found = model.run(tasks, watch or Steps())
    for one in found:
        assert isinstance(one, Outcome), one
    return [picture.pixels for one in found if isinstance(one, Outcome) for picture in one.pictures]


def assert_nearly_equal(one: Pixels, two: Pixels) -> None:
    difference = np.abs(one.astype(int) - two.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


def distance(one: Pixels, two: Pixels) -> float:
    return float(np.abs(one.astype(float) - two).mean())


@pytest.mark.parametrize("name", BUILDERS)
def test_a_mixed_batch_gives_the_pictures_of_single_runs(
    name: str, models: dict[str, diffusion.Diffusion]
) -> None:
    tasks = [
        edit_task("a red house", seed=1),
        edit_task("two boats", seed=2, count=2, mask=mask_picture()),
        edit_task("fog", seed=3, image=255 - scene(), negative_prompt="sun"),
        edit_task("snow", seed=4, mask=255 - mask_picture()),
    ]
    together = models[name].run(tasks, Steps())
    for task, found in zip(tasks, together, strict=True):
        assert isinstance(found, Outcome), found
        alone = pictures(models[name], [task])
        assert [picture.seed for picture in found.pictures] == [task.spec.input["seed"] + i for i in (0, 1)][
            : task.spec.rows
        ]
        for one, two in zip(found.pictures, alone, strict=True):
            assert one.pixels.shape == (SIDE_PX, SIDE_PX, 3)
            assert_nearly_equal(one.pixels, two)


@pytest.mark.parametrize("name", BUILDERS)
def test_what_the_mask_leaves_is_left_bit_by_bit(name: str, models: dict[str, diffusion.Diffusion]) -> None:
    image = scene(SIDE_PX, SIDE_PX)
    mask = mask_picture(SIDE_PX, SIDE_PX)
    (made,) = pictures(models[name], [edit_task(image=image, mask=mask, strength=1.0)])
    outside = mask.max(axis=2) == 0
    assert np.array_equal(made[outside], image[outside])
    assert distance(made[~outside], image[~outside]) > 5


def test_a_picture_of_another_size_is_fitted_before_it_is_kept(sd: diffusion.Diffusion) -> None:
    image, mask = scene(48, 40), mask_picture(48, 40)
    (made,) = pictures(sd, [edit_task(image=image, mask=mask)])
    fitted = cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    outside = ~mask_of(mask, SIDE_PX, SIDE_PX)
    assert outside.mean() > 0.5
    assert np.array_equal(made[outside], fitted[outside])


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_strength_says_how_far_the_result_goes_from_the_picture(
    name: str, models: dict[str, diffusion.Diffusion]
) -> None:
    image = scene(SIDE_PX, SIDE_PX)
    little, much = (
        pictures(models[name], [edit_task(image=image, strength=s, steps=8)])[0] for s in (0.15, 1)
    )
    assert distance(little, much) > 1
    plain = pictures(models[name], [edit_task(image=255 - image, strength=0.15, steps=8)])[0]
    assert distance(little, plain) > 1  # the picture is looked at


@pytest.mark.parametrize("strength", [0.01, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("mask", [None, mask_picture()])
def test_progress_reaches_its_end_at_every_strength(
    sd: diffusion.Diffusion, strength: float, mask: Pixels | None
) -> None:
    watch = Steps()
    pictures(sd, [edit_task(strength=strength, mask=mask, steps=10)], watch)
    steps = max(1, int(10 * strength))
    assert watch.seen == [(step, steps) for step in range(1, steps + 1)]


def test_a_mixed_batch_is_one_run_to_its_watch(thorough: diffusion.Diffusion) -> None:
    watch = Steps()
    pictures(thorough, [edit_task(seed=1), edit_task(seed=2, mask=mask_picture())], watch)
    shares = [step / steps for step, steps in watch.seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_cancel_stops_an_edit_and_the_model_lives(thorough: diffusion.Diffusion) -> None:
    task = edit_task(mask=mask_picture(), steps=6)
    before = pictures(thorough, [task])[0]
    with pytest.raises(JobCanceled):
        thorough.run([task], Steps(fail_at=2, error=JobCanceled()))
    assert np.array_equal(before, pictures(thorough, [task])[0])
    assert pictures(thorough, [generate_task()])[0].std() > 1


def test_edits_leave_text_to_image_as_it_was(sd: diffusion.Diffusion) -> None:
    before = pictures(sd, [generate_task()])[0]
    pictures(sd, [edit_task(), edit_task(mask=mask_picture())])
    assert np.array_equal(before, pictures(sd, [generate_task()])[0])


def test_a_job_without_a_prompt_is_drawn(sd: diffusion.Diffusion) -> None:
    made = pictures(sd, [edit_task(prompt=None)])[0]
    assert made.std() > 1
    assert_nearly_equal(pictures(sd, [generate_task(prompt=None)])[0], pictures(sd, [generate_task("")])[0])


def test_an_edit_without_a_picture_fails_alone(sd: diffusion.Diffusion) -> None:
    lacking = edit_task(seed=2)
    found = sd.run([edit_task(), Task(spec=lacking.spec)], Steps())
    assert isinstance(found[0], Outcome)
    assert isinstance(found[1], InvalidInput)


def test_a_black_mask_gives_the_picture_back_with_a_warning(sd: diffusion.Diffusion) -> None:
    image = scene(SIDE_PX, SIDE_PX)
    mask = mask_picture(SIDE_PX, SIDE_PX, value=20)  # nearly black: what JPEG makes of black
    (found,) = sd.run([edit_task(image=image, mask=mask)], Steps())
    assert isinstance(found, Outcome)
    assert np.array_equal(found.pictures[0].pixels, image)
    assert [warning["code"] for warning in found.warnings] == ["empty_mask"]


def test_a_pipeline_that_cannot_edit_is_refused_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(pipe: object) -> None:
        raise ValueError("AutoPipeline cannot find a pipeline linked to it")

    monkeypatch.setattr("diffusers.AutoPipelineForImage2Image.from_pipe", unknown)
    folder = tiny_models.stable_diffusion(tmp_path / "sd")
    with pytest.raises(ModelUnavailable, match="StableDiffusionPipeline does no image-to-image"):
        diffusion.load(generator_entry(folder, kinds=KINDS), CPU)
    diffusion.load(generator_entry(folder), CPU)


def test_results_say_what_they_started_from(sd: diffusion.Diffusion) -> None:
    found = sd.run([edit_task(), edit_task(mask=mask_picture())], Steps())
    modes = [one.detail["mode"] for one in found if isinstance(one, Outcome)]
    assert modes == ["image-to-image", "inpainting"]


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_rounds_run_the_noisy_half_again(name: str, tmp_path: Path) -> None:
    entry = generator_entry(BUILDERS[name](tmp_path / name), kinds=KINDS, options={"rounds": (1, 3)})
    model = diffusion.load(entry, CPU)
    task: dict[str, Any] = {"mask": mask_picture(), "strength": 1.0, "steps": 4}
    once, thrice = Steps(), Steps()
    plain = pictures(model, [edit_task(**task)], once)[0]
    again = pictures(model, [edit_task(**task, options={"rounds": 3})], thrice)[0]
    assert once.seen[-1] == (4, 4)
    assert thrice.seen[-1] == (2 * 3 + 2, 2 * 3 + 2)
    assert distance(plain, again) > 0
    batch = [edit_task(seed=seed, **task, options={"rounds": 3}) for seed in (6, 7)]
    assert_nearly_equal(pictures(model, batch)[1], again)


def test_the_first_listed_number_of_rounds_is_the_default(thorough: diffusion.Diffusion) -> None:
    watch = Steps()
    pictures(thorough, [edit_task(mask=mask_picture(), strength=1.0)], watch)
    assert watch.seen[-1] == (8, 8)


# ------------------------------------------------------------------------------------------------- the mask


def test_masks_are_what_is_not_nearly_black() -> None:
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[0, 0], mask[1, 1], mask[2, 2] = (31, 31, 31), (0, 32, 0), (255, 255, 255)
    assert np.argwhere(mask_of(mask, 8, 8)).tolist() == [[1, 1], [2, 2]]


def test_a_mask_made_smaller_keeps_its_thinnest_line() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[13] = 255
    assert mask_of(mask, 16, 16).any(axis=1).tolist() == [row == 3 for row in range(16)]


def test_cells_cover_the_mask_and_keep_clear_of_its_edge_at_first() -> None:
    mask = np.zeros((64, 64), bool)
    mask[9:50, 0:41] = True
    cells = Cells([mask], 8)
    assert cells.all[0, 0, 1:7, :6].all()
    assert cells.all.sum() == 36
    assert cells.inner[0, 0, 2:6, :5].all()  # at the picture's edge there is nothing to keep clear of
    assert cells.inner.sum() == 20
    assert np.asarray(cells.pictures(cells.all)[0])[8:56, :48].min() == 255


def test_a_small_mask_is_drawn_with_all_its_cells() -> None:
    mask = np.zeros((64, 64), bool)
    mask[20:30, 20:30] = True
    cells = Cells([mask], 8)
    assert torch.equal(cells.inner, cells.all)


def test_new_pixels_take_the_tone_of_the_old_at_the_edge() -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    drawn = np.full((64, 64, 3), 115 / 255)
    drawn[28:36, 28:36] = 1.0
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    made = joined(drawn, image, mask) * 255
    assert np.allclose(made[~mask], 100)
    assert np.abs(made[17:20, 20:44] - 100).max() < 2
    assert made[32, 32].min() > 235  # the thing itself keeps its contrast


def test_a_mask_over_everything_leaves_the_drawing_as_it_is() -> None:
    drawn = np.random.default_rng(0).random((16, 16, 3))
    made = joined(drawn, np.zeros((16, 16, 3), np.uint8), np.ones((16, 16), bool))
    assert np.allclose(made, drawn, atol=1e-5)
