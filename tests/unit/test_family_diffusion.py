"""Text to image by real pipelines with random weights: batches, seeds, cancelling, damaged folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pixelkiln_shared.catalogue import Limits
from pixelkiln_shared.errors import JobCanceled, ModelUnavailable
from pixelkiln_worker import weights
from pixelkiln_worker.families import diffusion
from pixelkiln_worker.families.contract import Outcome
from tests import tiny_models
from tests.tiny_models import CPU, SIDE_PX, Steps, generate_task, generator_entry

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "sd": tiny_models.stable_diffusion,
    "sdxl": tiny_models.stable_diffusion_xl,
    "sd3": tiny_models.stable_diffusion_3,
    "flux": tiny_models.flux,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def sd(folders: dict[str, Path]) -> diffusion.Diffusion:
    return diffusion.load(generator_entry(folders["sd"]), CPU)


@pytest.fixture
def sd_copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["sd"], tmp_path / "sd")


def outcome(found: Outcome | Exception) -> Outcome:
    assert isinstance(found, Outcome), found
    return found


def codes(found: Outcome) -> list[str]:
    return [warning["code"] for warning in found.warnings]


def assert_nearly_equal(one: np.ndarray, two: np.ndarray) -> None:
    """fp32 batches agree to 2e-6: at most a few of the 8-bit values differ, by one."""
    difference = np.abs(one.astype(int) - two.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize("name", BUILDERS)
def test_a_batch_gives_the_pictures_of_single_runs(name: str, folders: dict[str, Path]) -> None:
    model = diffusion.load(generator_entry(folders[name]), CPU)
    tasks = [
        generate_task("a red house", seed=1),
        generate_task("two boats", seed=2, count=2),
        generate_task("x", seed=3),
    ]
    together = [outcome(found) for found in model.run(tasks, Steps())]
    assert [len(found.pictures) for found in together] == [1, 2, 1]
    assert [picture.seed for picture in together[1].pictures] == [2, 3]
    for task, found in zip(tasks, together, strict=True):
        alone = outcome(model.run([task], Steps())[0])
        for one, two in zip(found.pictures, alone.pictures, strict=True):
            assert one.pixels.shape == (SIDE_PX, SIDE_PX, 3)
            assert one.pixels.dtype == np.uint8
            assert_nearly_equal(one.pixels, two.pixels)
    assert together[0].pictures[0].pixels.std() > 1  # a picture, not a plain sheet
    assert np.abs(together[0].pictures[0].pixels - together[2].pictures[0].pixels.astype(int)).max() > 1


def test_the_same_job_alone_gives_the_same_bytes(sd: diffusion.Diffusion) -> None:
    first, second = (outcome(sd.run([generate_task()], Steps())[0]).pictures[0].pixels for _ in range(2))
    assert np.array_equal(first, second)


def test_picture_i_has_seed_plus_i(sd: diffusion.Diffusion) -> None:
    many = outcome(sd.run([generate_task(seed=40, count=3)], Steps())[0]).pictures
    one = outcome(sd.run([generate_task(seed=42)], Steps())[0]).pictures[0]
    assert_nearly_equal(many[2].pixels, one.pixels)


def test_more_rows_than_fit_run_in_several_passes(sd: diffusion.Diffusion) -> None:
    watch = Steps()
    found = outcome(sd.run([generate_task(count=10, steps=2)], watch)[0])
    assert sd.max_rows == 4
    assert [picture.seed for picture in found.pictures] == list(range(7, 17))
    assert watch.seen == [(step, 6) for step in range(1, 7)]


def test_a_cancel_stops_between_steps_and_the_model_lives(sd: diffusion.Diffusion) -> None:
    before = outcome(sd.run([generate_task(steps=6)], Steps())[0]).pictures[0].pixels
    watch = Steps(fail_at=2, error=JobCanceled())
    with pytest.raises(JobCanceled):
        sd.run([generate_task(steps=6)], watch)
    assert watch.seen == [(1, 6), (2, 6)]
    after = outcome(sd.run([generate_task(steps=6)], Steps())[0]).pictures[0].pixels
    assert np.array_equal(before, after)


def test_a_negative_prompt_changes_only_its_own_picture(sd: diffusion.Diffusion) -> None:
    plain, other = generate_task(seed=1), generate_task(seed=1, negative_prompt="fog")
    alone = outcome(sd.run([plain], Steps())[0]).pictures[0].pixels
    together = [outcome(found).pictures[0].pixels for found in sd.run([plain, other], Steps())]
    assert_nearly_equal(together[0], alone)
    assert np.abs(together[1].astype(int) - alone).max() > 1


def test_a_neighbours_negative_prompt_leaves_sdxl_alone(folders: dict[str, Path]) -> None:
    model = diffusion.load(generator_entry(folders["sdxl"]), CPU)
    plain, other = generate_task(seed=1), generate_task(seed=2, negative_prompt="fog")
    alone = outcome(model.run([plain], Steps())[0]).pictures[0].pixels
    together = model.run([other, plain], Steps())
    assert_nearly_equal(outcome(together[1]).pictures[0].pixels, alone)


def test_a_negative_prompt_that_is_not_read_gives_a_warning(
    sd: diffusion.Diffusion, folders: dict[str, Path]
) -> None:
    task = generate_task(negative_prompt="fog", guidance=1.0)
    assert codes(outcome(sd.run([task], Steps())[0])) == ["negative_prompt_ignored"]
    distilled = diffusion.load(generator_entry(folders["flux"]), CPU)
    found = distilled.run([generate_task(negative_prompt="fog")], Steps())
    assert codes(outcome(found[0])) == ["negative_prompt_ignored"]


def test_a_prompt_beyond_the_tokenizer_gives_a_warning(
    sd: diffusion.Diffusion, folders: dict[str, Path]
) -> None:
    long = "abcdefghij " * 12
    found = [outcome(one) for one in sd.run([generate_task(long), generate_task("short")], Steps())]
    assert codes(found[0]) == ["prompt_truncated"]
    assert "reads 77 tokens of a prompt; this one has 122" in found[0].warnings[0]["message"]
    assert codes(found[1]) == []
    with_t5 = diffusion.load(generator_entry(folders["flux"]), CPU)
    assert codes(outcome(with_t5.run([generate_task(long)], Steps())[0])) == []


def test_options_of_the_catalogue_reach_the_pipeline(folders: dict[str, Path]) -> None:
    entry = generator_entry(folders["sd"], options={"guidance_rescale": (0.0, 0.7)})
    model = diffusion.load(entry, CPU)
    plain = outcome(model.run([generate_task()], Steps())[0]).pictures[0].pixels
    task = generate_task(options={"guidance_rescale": 0.7})
    changed = outcome(model.run([task], Steps())[0]).pictures[0].pixels
    assert not np.array_equal(changed, plain)
    unlisted = outcome(model.run([generate_task(options={"eta": 99.0})], Steps())[0]).pictures[0].pixels
    assert np.array_equal(unlisted, plain)


def test_identity_and_footprint_tell_what_ran(sd: diffusion.Diffusion) -> None:
    assert sd.identity["pipeline"] == "StableDiffusionPipeline"
    assert sd.identity["dtype"] == "float32"
    assert len(sd.identity["sha256"]) == 64
    assert {"torch", "diffusers", "transformers"} <= set(sd.identity["versions"])
    assert json.dumps(sd.identity)
    assert sd.footprint_bytes > 100_000


def test_the_footprint_is_known_before_loading(folders: dict[str, Path], sd: diffusion.Diffusion) -> None:
    foreseen = weights.resolve(generator_entry(folders["sd"])).footprint_bytes(4)
    assert abs(foreseen - sd.footprint_bytes) < 0.01 * sd.footprint_bytes


def test_half_precision_files_run_in_the_device_dtype(sd_copy: Path) -> None:
    for path in sd_copy.rglob("*.safetensors"):
        halves = {
            name: tensor.astype(np.float16) if tensor.dtype == np.float32 else tensor
            for name, tensor in load_file(path).items()
        }
        save_file(halves, path.with_name(path.stem + ".fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()
    model = diffusion.load(generator_entry(sd_copy), CPU)
    assert model.identity["dtype"] == "float32"
    assert outcome(model.run([generate_task()], Steps())[0]).pictures[0].pixels.std() > 1


def test_weights_that_lack_tensors_are_refused_not_filled_with_noise(sd_copy: Path) -> None:
    path = next((sd_copy / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    tensors.pop("conv_out.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="tiny"):
        diffusion.load(generator_entry(sd_copy), CPU)


def test_weights_of_another_shape_are_refused(sd_copy: Path) -> None:
    path = next((sd_copy / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["conv_out.weight"] = np.zeros((4, 48, 3, 3), np.float32)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="tiny"):
        diffusion.load(generator_entry(sd_copy), CPU)


def test_weights_that_are_not_numbers_are_refused(sd_copy: Path) -> None:
    path = next((sd_copy / "vae").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"][:] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="not finite"):
        diffusion.load(generator_entry(sd_copy), CPU)


def _custom_class(index: dict[str, object]) -> None:
    index["_class_name"] = ["my_pipeline", "MyPipeline"]


def _foreign_module(index: dict[str, object]) -> None:
    index["unet"] = ["subprocess", "Popen"]


def _unknown_pipeline(index: dict[str, object]) -> None:
    index["_class_name"] = "DDPMPipeline"


@pytest.mark.parametrize("change", [_custom_class, _foreign_module, _unknown_pipeline])
def test_a_pipeline_that_is_not_ours_to_run_is_refused(
    sd_copy: Path, change: Callable[[dict[str, object]], None]
) -> None:
    path = sd_copy / "model_index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match="tiny"):
        diffusion.load(generator_entry(sd_copy), CPU)


def test_a_safety_checker_in_the_index_is_left_out(sd_copy: Path) -> None:
    path = sd_copy / "model_index.json"
    index = json.loads(path.read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["requires_safety_checker"] = True
    path.write_text(json.dumps(index))
    model = diffusion.load(generator_entry(sd_copy, limits=Limits(max_batch=1)), CPU)
    assert len(outcome(model.run([generate_task()], Steps())[0]).pictures) == 1


def test_a_component_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    folder = tiny_models.stable_diffusion(tmp_path / "model")
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelUnavailable, match="model tiny: the component vae is missing"):
        diffusion.load(generator_entry(folder), CPU)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ModelUnavailable, match=r"model tiny: model_index\.json is damaged"):
        diffusion.load(generator_entry(folder), CPU)
