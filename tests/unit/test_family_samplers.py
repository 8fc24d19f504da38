"""Pictures from noise by random networks: seeds, batches, walks between two pictures, damaged folders."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import JobCanceled, ModelUnavailable
from pixelkiln_worker import families
from pixelkiln_worker.families import samplers
from pixelkiln_worker.families.contract import Model, Outcome, Pixels, Task
from pixelkiln_worker.families.noise_nets import CodePrior
from tests import tiny_models
from tests.tiny_models import CPU, SIDE_PX, Steps, generate_task, generator_entry

PAINTERS = ("CodePainter", "AutoencoderKL")
OPTIONS: dict[str, Any] = {"interpolate": (True, False), "truncation": (0.5, 1.0)}


def sampler_entry(folder: Path) -> ModelEntry:
    return generator_entry(folder, family="samplers", options=OPTIONS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("samplers")
    return {name: tiny_models.noise_sampler(root / name, painter=name) for name in PAINTERS}


@pytest.fixture(scope="module")
def gan(folders: dict[str, Path]) -> samplers.Sampler:
    return samplers.load(sampler_entry(folders["CodePainter"]), CPU)


@pytest.fixture
def gan_copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["CodePainter"], tmp_path / "gan")


def noise_task(seed: int = 7, **fields: Any) -> Task:
    """A job without a prompt."""
    task = generate_task(seed=seed, **fields)
    bare = {name: value for name, value in task.spec.input.items() if name != "prompt"}
    return Task(spec=task.spec.model_copy(update={"input": bare}))


def pictures(model: Model | samplers.Sampler, task: Task) -> list[Pixels]:
    found = model.run([task], Steps())[0]
    assert isinstance(found, Outcome), found
    return [picture.pixels for picture in found.pictures]


def assert_nearly_equal(one: Pixels, two: Pixels) -> None:
    """fp32 batches agree to about 1e-6: at most a few of the 8-bit values differ, by one."""
    difference = np.abs(one.astype(int) - two.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


def differs(one: Pixels, two: Pixels) -> bool:
    return bool(np.abs(one.astype(int) - two.astype(int)).max() > 1)


@pytest.mark.parametrize("painter", PAINTERS)
def test_a_batch_gives_the_pictures_of_single_runs(painter: str, folders: dict[str, Path]) -> None:
    model = families.load(sampler_entry(folders[painter]), CPU)
    tasks = [noise_task(seed=1), noise_task(seed=2, count=4), noise_task(seed=9)]
    together = model.run(tasks, Steps())
    for task, found in zip(tasks, together, strict=True):
        assert isinstance(found, Outcome)
        assert [picture.seed for picture in found.pictures] == [
            task.spec.input["seed"] + index for index in range(task.spec.rows)
        ]
        for one, two in zip(found.pictures, pictures(model, task), strict=True):
            assert one.pixels.shape == (SIDE_PX, SIDE_PX, 3)
            assert one.pixels.dtype == np.uint8
            assert_nearly_equal(one.pixels, two)
    first, last = (pictures(model, tasks[index])[0] for index in (0, 2))
    assert first.std() > 1  # a picture, not a plain sheet
    assert differs(first, last)


def test_the_same_job_alone_gives_the_same_bytes(gan: samplers.Sampler) -> None:
    assert np.array_equal(pictures(gan, noise_task())[0], pictures(gan, noise_task())[0])


def test_picture_i_has_seed_plus_i(gan: samplers.Sampler) -> None:
    many = pictures(gan, noise_task(seed=40, count=3))
    assert_nearly_equal(many[2], pictures(gan, noise_task(seed=42))[0])


def test_a_step_is_a_pass_of_at_most_max_rows(gan: samplers.Sampler) -> None:
    watch = Steps()
    found = gan.run([noise_task(count=5), noise_task(seed=60, count=4)], watch)
    assert [len(outcome.pictures) for outcome in found if isinstance(outcome, Outcome)] == [5, 4]
    assert gan.max_rows == 4
    assert watch.seen == [(1, 3), (2, 3), (3, 3)]


def test_a_cancel_between_passes_comes_through(gan: samplers.Sampler) -> None:
    with pytest.raises(JobCanceled):
        gan.run([noise_task(count=8)], Steps(fail_at=1, error=JobCanceled()))
    assert pictures(gan, noise_task())


def test_a_walk_begins_and_ends_at_the_plain_pictures(gan: samplers.Sampler) -> None:
    task = noise_task(seed=3, count=6, options={"interpolate": True})
    found = gan.run([task], Steps())[0]
    assert isinstance(found, Outcome)
    assert [picture.seed for picture in found.pictures] == [3, None, None, None, None, 8]
    walk = [picture.pixels for picture in found.pictures]
    assert_nearly_equal(walk[0], pictures(gan, noise_task(seed=3))[0])
    assert_nearly_equal(walk[-1], pictures(gan, noise_task(seed=8))[0])


def test_a_walk_goes_in_small_steps(gan: samplers.Sampler) -> None:
    walk = pictures(gan, noise_task(seed=3, count=9, options={"interpolate": True}))
    steps = [np.abs(one.astype(int) - two).mean() for one, two in itertools.pairwise(walk)]
    whole = np.abs(walk[0].astype(int) - walk[-1]).mean()
    assert max(steps) < 0.5 * whole
    assert min(steps) > 0


def test_a_walk_of_one_picture_is_that_picture(gan: samplers.Sampler) -> None:
    alone = pictures(gan, noise_task(seed=3, options={"interpolate": True}))[0]
    assert np.array_equal(alone, pictures(gan, noise_task(seed=3))[0])


def test_noise_between_two_is_as_long_as_they_are() -> None:
    torch.manual_seed(0)
    first, last = torch.randn(2, 512)
    middle = samplers.slerp(first, last, 0.5)
    assert float(middle.norm()) == pytest.approx(float((first.norm() + last.norm()) / 2), rel=0.05)
    assert float((first + last).norm() / 2) < 0.8 * float(first.norm())  # what a straight line would give


@pytest.mark.parametrize("sign", [1, -1])
def test_noise_on_one_line_is_mixed_straight(sign: int) -> None:
    first = torch.arange(1.0, 5.0)
    middle = samplers.slerp(first, sign * first, 0.25)
    assert torch.allclose(middle, first * (0.75 + sign * 0.25), atol=1e-5)


def test_truncation_brings_pictures_together(gan: samplers.Sampler) -> None:
    def spread(**options: Any) -> float:
        made = np.stack(pictures(gan, noise_task(count=8, options=options))).astype(float)
        return float(made.std(0).mean())

    assert spread(truncation=0.5) < 0.9 * spread()
    assert spread(truncation=1.0) == spread()


def test_options_the_catalogue_does_not_list_are_ignored(folders: dict[str, Path]) -> None:
    model = samplers.load(generator_entry(folders["CodePainter"]), CPU)
    task = noise_task(count=3, options={"interpolate": True, "truncation": 0.1})
    for one, two in zip(pictures(model, task), pictures(model, noise_task(count=3)), strict=True):
        assert np.array_equal(one, two)


def test_another_size_is_scaled_and_said(gan: samplers.Sampler) -> None:
    found = gan.run([noise_task(width=64, height=48)], Steps())[0]
    assert isinstance(found, Outcome)
    assert found.pictures[0].pixels.shape == (48, 64, 3)
    assert [warning["code"] for warning in found.warnings] == ["scaled"]
    plain = gan.run([noise_task()], Steps())[0]
    assert isinstance(plain, Outcome)
    assert plain.warnings == ()


def test_identity_and_footprint_tell_what_ran(gan: samplers.Sampler) -> None:
    assert gan.identity["networks"] == {
        "prior": "CodePrior",
        "painter": "CodePainter",
        "vae": "AutoencoderTiny",
    }
    assert gan.identity["dtype"] == "float32"
    assert len(gan.identity["sha256"]) == 64
    assert json.dumps(gan.identity)
    assert gan.footprint_bytes > 10_000


def test_a_prior_knows_the_density_of_its_own_codes() -> None:
    torch.manual_seed(0)
    prior = CodePrior(channels=2, side=2, layers=4, width=8).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    noise = torch.randn(1, 8, dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(lambda n: prior(n).flatten(), noise)[:, 0]
    gaussian = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum()
    expected = (gaussian - torch.linalg.slogdet(jacobian)[1]).detach()
    found = prior.log_likelihood(prior(noise)).detach()
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("component", ["prior", "painter", "vae"])
def test_weights_that_lack_tensors_are_refused_not_filled_with_noise(gan_copy: Path, component: str) -> None:
    path = next((gan_copy / component).glob("*.safetensors"))
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[-1])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="tiny"):
        samplers.load(sampler_entry(gan_copy), CPU)


def test_weights_cut_short_are_refused(gan_copy: Path) -> None:
    path = next((gan_copy / "painter").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelUnavailable, match="cut short"):
        samplers.load(sampler_entry(gan_copy), CPU)


def test_weights_that_are_not_numbers_are_refused(gan_copy: Path) -> None:
    path = next((gan_copy / "painter").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"][:] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="not finite"):
        samplers.load(sampler_entry(gan_copy), CPU)


def _foreign_class(index: dict[str, Any]) -> None:
    index["painter"] = ["subprocess", "Popen"]


def _class_out_of_place(index: dict[str, Any]) -> None:
    index["prior"] = ["diffusers", "AutoencoderKL"]


def _other_pipeline(index: dict[str, Any]) -> None:
    index["_class_name"] = "DDPMPipeline"


def _missing_component(index: dict[str, Any]) -> None:
    del index["vae"]


@pytest.mark.parametrize("change", [_foreign_class, _class_out_of_place, _other_pipeline, _missing_component])
def test_a_folder_that_is_no_samplers_is_refused(
    gan_copy: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path = gan_copy / "model_index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match="tiny"):
        samplers.load(sampler_entry(gan_copy), CPU)
