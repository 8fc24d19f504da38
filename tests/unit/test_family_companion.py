"""Masked edits by a companion: a nine-channel U-Net in place of the folder's own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline

from pixelkiln_shared.catalogue import Weights
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.families import diffusion
from pixelkiln_worker.families.contract import Outcome, Pixels, Task
from tests import tiny_models, tiny_pipelines
from tests.tiny_models import CPU, SIDE_PX, Steps, generate_task, generator_entry
from tests.tiny_pipelines import edit_task, mask_picture, scene

KINDS = (Kind.GENERATE, Kind.EDIT)
ROUNDS = {"rounds": (3, 1)}


def save_unet(folder: Path, channels: int) -> Path:
    torch.manual_seed(5)
    tiny_models.conditional_unet(32, in_channels=channels).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline, a U-Net that reads masks, and both as one folder of an inpainting pipeline."""
    root = tmp_path_factory.mktemp("companions")
    torch.manual_seed(5)
    unet = tiny_models.conditional_unet(32, in_channels=9)
    return {
        "sd": tiny_models.stable_diffusion(root / "sd"),
        "inpaint": save_unet(root / "inpaint", 9),
        "one": tiny_models.stable_diffusion(root / "one", StableDiffusionInpaintPipeline, unet=unet),
    }


def load(folder: Path, companion: Path | None = None, **fields: object) -> diffusion.Diffusion:
    companions = {} if companion is None else {"inpaint": Weights(source=str(companion))}
    return diffusion.load(generator_entry(folder, kinds=KINDS, companions=companions, **fields), CPU)


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> diffusion.Diffusion:
    return load(folders["sd"], folders["inpaint"], options=ROUNDS)


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> diffusion.Diffusion:
    return load(folders["sd"], options=ROUNDS)


def picture(model: diffusion.Diffusion, task: Task, watch: Steps | None = None) -> Pixels:
    (found,) = model.run([task], watch or Steps())
    assert isinstance(found, Outcome), found
    return found.pictures[0].pixels


def masked(seed: int = 7, **fields: Any) -> Task:
    known: dict[str, Any] = {
        "image": scene(SIDE_PX, SIDE_PX),
        "mask": mask_picture(SIDE_PX, SIDE_PX),
        "strength": 1.0,
    }
    return edit_task(seed=seed, **known | fields)


def test_the_companion_draws_as_a_whole_inpainting_pipeline_would(
    model: diffusion.Diffusion, alone: diffusion.Diffusion, folders: dict[str, Path]
) -> None:
    drawn = picture(model, masked())
    assert np.array_equal(drawn, picture(load(folders["one"]), masked()))
    assert np.abs(drawn.astype(int) - picture(alone, masked())).max() > 1


def test_what_the_mask_leaves_is_left_bit_by_bit(model: diffusion.Diffusion) -> None:
    outside = mask_picture(SIDE_PX, SIDE_PX).max(axis=2) == 0
    image = scene(SIDE_PX, SIDE_PX)
    drawn = picture(model, masked())
    assert np.array_equal(drawn[outside], image[outside])
    assert not np.array_equal(drawn[~outside], image[~outside])


def test_jobs_without_a_mask_are_the_folders_own(
    model: diffusion.Diffusion, alone: diffusion.Diffusion
) -> None:
    picture(model, masked())
    for task in (generate_task(), edit_task()):
        assert np.array_equal(picture(model, task), picture(alone, task))


def test_a_mixed_batch_gives_the_pictures_of_single_runs(model: diffusion.Diffusion) -> None:
    tasks: Sequence[Task] = [edit_task(seed=1), masked(seed=2, strength=0.75), masked(seed=3, strength=0.75)]
    for task, found in zip(tasks, model.run(tasks, Steps()), strict=True):
        assert isinstance(found, Outcome), found
        difference = np.abs(found.pictures[0].pixels.astype(int) - picture(model, task))
        assert difference.max() <= 1


def test_the_companion_needs_no_rounds(model: diffusion.Diffusion, alone: diffusion.Diffusion) -> None:
    once, again = Steps(), Steps()
    picture(model, masked(steps=4), once)
    picture(alone, masked(steps=4), again)
    assert once.seen[-1] == (4, 4)
    assert again.seen[-1] == (8, 8)


def test_an_adapter_is_for_the_folders_own_network(folders: dict[str, Path], tmp_path: Path) -> None:
    ink = Weights(source=str(tiny_pipelines.lora(tmp_path / "ink", folders["sd"], factor=0.2)))
    adapted = {"loras": {"ink": ink}, "options": {"lora": ("ink",)}}
    model, alone = (load(folders["sd"], beside, **adapted) for beside in (folders["inpaint"], None))
    task = masked(options={"lora": "ink"})
    assert np.array_equal(picture(model, task), picture(alone, task))


def test_memory_and_identity_count_the_companion(
    model: diffusion.Diffusion, alone: diffusion.Diffusion
) -> None:
    unet = tiny_models.conditional_unet(32, in_channels=9)
    weights_bytes = 4 * sum(parameter.numel() for parameter in unet.parameters())
    assert model.footprint_bytes == alone.footprint_bytes + weights_bytes
    assert len(model.identity["companions"]["inpaint"]["sha256"]) == 64
    assert "companions" not in alone.identity


def test_a_damaged_companion_is_refused_at_load(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["inpaint"], tmp_path / "inpaint")
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelUnavailable, match="cut short or damaged"):
        load(folders["sd"], folder)


def test_a_companion_of_another_hash_is_refused(folders: dict[str, Path]) -> None:
    listed = Weights(source=str(folders["inpaint"]), sha256={"diffusion_pytorch_model.safetensors": "0" * 64})
    entry = generator_entry(folders["sd"], kinds=KINDS, companions={"inpaint": listed})
    with pytest.raises(ModelUnavailable, match="SHA-256"):
        diffusion.load(entry, CPU)


def test_a_companion_that_reads_no_mask_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="4 input channels instead of 9"):
        load(folders["sd"], save_unet(tmp_path / "four", 4))


def test_a_pipeline_without_a_unet_takes_no_companion(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no U-Net"):
        load(tiny_models.flux(tmp_path / "flux"), folders["inpaint"])
