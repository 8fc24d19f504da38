"""What a catalogue entry may offer beside prompt and size: schedulers, LoRA; previews; less memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from pixelkiln_shared.catalogue import Weights
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.families import diffusion, schedulers
from pixelkiln_worker.families.contract import Frugal, Outcome, Pixels, Task
from pixelkiln_worker.families.pipelines import Mode, offloads
from tests import tiny_models, tiny_pipelines
from tests.tiny_models import CPU, SIDE_PX, Steps, generate_task, generator_entry
from tests.tiny_pipelines import Looks, edit_task, mask_picture

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "sd": tiny_models.stable_diffusion,
    "sdxl": tiny_models.stable_diffusion_xl,
    "sd3": tiny_models.stable_diffusion_3,
    "flux": tiny_models.flux,
}
KINDS = (Kind.GENERATE, Kind.EDIT)
DIFFUSION = [name for name in schedulers.SCHEDULERS if not name.startswith("flow-")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def sd(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> diffusion.Diffusion:
    root = tmp_path_factory.mktemp("loras")
    own = tiny_pipelines.lora(root / "own", folders["sd"], factor=0.2)
    foreign = tiny_pipelines.lora(root / "foreign", folders["sd"], prefix="unet.elsewhere")
    entry = generator_entry(
        folders["sd"],
        kinds=KINDS,
        loras={"ink": Weights(source=str(own)), "foreign": Weights(source=str(foreign))},
        options={
            "scheduler": tuple(DIFFUSION),
            "lora": ("ink", "foreign"),
            "lora_scale": (0.0, 0.5, 1.0),
            "rounds": (1, 2),
        },
    )
    return diffusion.load(entry, CPU)


def run(model: diffusion.Diffusion, task: Task, watch: Steps | None = None) -> Outcome:
    (found,) = model.run([task], watch or Steps())
    assert isinstance(found, Outcome), found
    return found


def picture(model: diffusion.Diffusion, task: Task) -> Pixels:
    return run(model, task).pictures[0].pixels


# ---------------------------------------------------------------------------------------------- schedulers


@pytest.mark.parametrize("name", DIFFUSION)
def test_every_scheduler_draws_from_text_from_a_picture_and_in_a_mask(
    sd: diffusion.Diffusion, name: str
) -> None:
    options = {"scheduler": name, "rounds": 2}
    found = run(sd, generate_task(steps=4, options=options))
    assert found.detail["scheduler"] == name
    assert found.pictures[0].pixels.std() > 1
    assert picture(sd, edit_task(options=options)).std() > 1
    assert picture(sd, edit_task(options=options, mask=mask_picture(), strength=1.0)).std() > 1


def test_a_scheduler_does_not_stay_for_the_next_batch(sd: diffusion.Diffusion) -> None:
    before = picture(sd, generate_task())
    other = picture(sd, generate_task(options={"scheduler": "ddim"}))
    assert not np.array_equal(before, other)
    assert np.array_equal(before, picture(sd, generate_task()))
    assert run(sd, generate_task()).detail["scheduler"] == "EulerDiscreteScheduler"


@pytest.mark.parametrize("name", ["flow-euler", "flow-lcm"])
def test_flow_models_take_flow_schedulers(name: str, folders: dict[str, Path]) -> None:
    entry = generator_entry(folders["sd3"], kinds=KINDS, options={"scheduler": (name,)})
    model = diffusion.load(entry, CPU)
    for task in (generate_task, edit_task):
        assert picture(model, task(steps=4, options={"scheduler": name})).std() > 1


@pytest.mark.parametrize(
    ("pipeline", "name", "why"),
    [
        ("sd", "flow-euler", "is no flow-matching model"),
        ("sd3", "euler", "learnt flow matching"),
        ("sd3", "flow-dpmpp-2m", "no scale_noise"),
        ("sd", "magic", "is none of"),
    ],
)
def test_a_scheduler_that_does_not_go_with_the_model_is_refused_at_load(
    pipeline: str, name: str, why: str, folders: dict[str, Path]
) -> None:
    entry = generator_entry(folders[pipeline], options={"scheduler": (name,)})
    with pytest.raises(ModelUnavailable, match=why):
        diffusion.load(entry, CPU)


@pytest.mark.parametrize(
    ("scheduler", "prediction"),
    [
        (DDIMScheduler(), "epsilon"),
        (DDIMScheduler(prediction_type="v_prediction"), "v"),
        (EulerDiscreteScheduler(), "epsilon"),
        (EulerDiscreteScheduler(prediction_type="v_prediction"), "v"),
        (DPMSolverMultistepScheduler(prediction_type="sample"), "sample"),
        (DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), "flow"),
        (FlowMatchEulerDiscreteScheduler(), "flow"),
    ],
)
def test_the_finished_picture_is_foreseen_exactly_by_a_perfect_model(scheduler: Any, prediction: str) -> None:
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(10)
    timestep = scheduler.timesteps[4]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(4)
    sample = schedulers.noised(scheduler, clean, timestep, noise)
    alpha, sigma = schedulers.noise_level(scheduler, timestep)
    scale = (alpha**2 + sigma**2) ** 0.5
    output = {
        "epsilon": noise,
        "v": (alpha * noise - sigma * clean) / scale,
        "sample": clean,
        "flow": noise - clean,
    }[prediction]
    assert torch.allclose(sample, alpha * clean + sigma * noise, atol=1e-5)
    foreseen = schedulers.clean_estimate(scheduler, output, timestep, sample)
    assert torch.allclose(foreseen, clean, atol=1e-4)


# ---------------------------------------------------------------------------------------------------- LoRA


def test_a_lora_works_for_its_batch_and_leaves_no_trace(sd: diffusion.Diffusion) -> None:
    plain = picture(sd, generate_task())
    with_lora = run(sd, generate_task(options={"lora": "ink"}))
    assert np.abs(with_lora.pictures[0].pixels.astype(int) - plain).max() > 1
    assert np.array_equal(plain, picture(sd, generate_task()))
    told = with_lora.detail["lora"]
    assert (told["name"], told["scale"], len(told["sha256"])) == ("ink", 1.0, 64)
    assert "lora" not in run(sd, generate_task()).detail


def test_the_scale_of_a_lora_counts(sd: diffusion.Diffusion) -> None:
    plain = picture(sd, generate_task()).astype(float)
    far = [
        np.abs(picture(sd, generate_task(options={"lora": "ink", "lora_scale": scale})) - plain).mean()
        for scale in (0.0, 0.5, 1.0)
    ]
    assert far[0] < 0.01 < far[1] < far[2]


def test_a_lora_works_for_edits_too(sd: diffusion.Diffusion) -> None:
    tasks: list[dict[str, Any]] = [{}, {"mask": mask_picture()}]
    for task in tasks:
        plain = picture(sd, edit_task(**task))
        assert not np.array_equal(plain, picture(sd, edit_task(**task, options={"lora": "ink"})))
        assert np.array_equal(plain, picture(sd, edit_task(**task)))


def test_a_lora_that_fits_no_layer_is_refused_and_leaves_no_trace(sd: diffusion.Diffusion) -> None:
    plain = picture(sd, generate_task())
    inked = picture(sd, generate_task(options={"lora": "ink"}))
    with pytest.raises(ModelUnavailable, match="foreign is not made for"):
        sd.run([generate_task(options={"lora": "foreign"})], Steps())
    assert np.array_equal(plain, picture(sd, generate_task()))
    assert np.array_equal(inked, picture(sd, generate_task(options={"lora": "ink"})))


def test_a_lora_of_another_hash_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    stored = tiny_pipelines.lora(tmp_path / "lora", folders["sd"])
    wrong = {"pytorch_lora_weights.safetensors": "0" * 64}
    entry = generator_entry(
        folders["sd"],
        loras={"ink": Weights(source=str(stored), sha256=wrong)},
        options={"lora": ("ink",)},
    )
    model = diffusion.load(entry, CPU)
    with pytest.raises(ModelUnavailable, match="SHA-256"):
        model.run([generate_task(options={"lora": "ink"})], Steps())


@pytest.mark.parametrize("kinds", [KINDS, (Kind.GENERATE,)])
def test_an_option_that_no_pipeline_takes_is_refused_at_load(
    folders: dict[str, Path], kinds: tuple[Kind, ...]
) -> None:
    entry = generator_entry(folders["sd"], kinds=kinds, options={"gidance_rescale": (0.7,)})
    with pytest.raises(ModelUnavailable, match="'gidance_rescale' is no argument of StableDiffusionPipeline"):
        diffusion.load(entry, CPU)


def test_an_option_of_the_inpainting_pipeline_alone_is_known(folders: dict[str, Path]) -> None:
    options = {"padding_mask_crop": (8,), "guidance_rescale": (0.7,)}
    diffusion.load(generator_entry(folders["sd"], kinds=KINDS, options=options), CPU)
    with pytest.raises(ModelUnavailable, match="padding_mask_crop"):
        diffusion.load(generator_entry(folders["sd"], options=options), CPU)


def test_an_option_that_names_an_unknown_lora_is_refused_at_load(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelUnavailable, match="sepia"):
        diffusion.load(generator_entry(folders["sd"], options={"lora": ("sepia",)}), CPU)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_loras_work_with_other_shapes(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    component = "unet" if name == "sdxl" else "transformer"
    stored = tiny_pipelines.lora(tmp_path / "lora", folders[name], component=component)
    entry = generator_entry(
        folders[name], loras={"ink": Weights(source=str(stored))}, options={"lora": ("ink",)}
    )
    model = diffusion.load(entry, CPU)
    plain = picture(model, generate_task())
    before_bytes = model.footprint_bytes
    assert not np.array_equal(plain, picture(model, generate_task(options={"lora": "ink"})))
    assert model.footprint_bytes > before_bytes
    assert np.array_equal(plain, picture(model, generate_task()))


# ------------------------------------------------------------------------------------------------ previews


@pytest.mark.parametrize("name", BUILDERS)
def test_previews_come_to_look_like_the_result(name: str, folders: dict[str, Path]) -> None:
    model = diffusion.load(generator_entry(folders[name], kinds=KINDS), CPU)
    watch = Looks((1,))
    tasks = [generate_task(seed=1, steps=6), generate_task(seed=2, steps=6)]
    found = model.run(tasks, watch)[1]
    assert isinstance(found, Outcome)
    assert [index for index, _ in watch.previews] == [1] * 6
    made = found.pictures[0].pixels
    far, near = (np.abs(watch.previews[place][1].astype(int) - made).mean() for place in (0, -1))
    assert near < far
    assert near < 8
    assert watch.previews[0][1].shape == (SIDE_PX, SIDE_PX, 3)


def test_a_watch_that_wants_previews_gets_the_same_picture(sd: diffusion.Diffusion) -> None:
    task = edit_task(mask=mask_picture())
    watch = Looks((0,))
    seen = run(sd, task, watch).pictures[0].pixels
    assert len(watch.previews) == watch.seen[-1][1]
    assert np.array_equal(seen, picture(sd, task))


# -------------------------------------------------------------------------------------------------- memory


def test_the_entrys_number_format_goes_before_the_devices(folders: dict[str, Path]) -> None:
    model = diffusion.load(generator_entry(folders["sd"], dtype="bfloat16"), CPU)
    assert model.identity["dtype"] == "bfloat16"
    assert "8 %" in model.identity["in_a_batch"]
    assert picture(model, generate_task()).std() > 1


def test_a_model_that_must_be_frugal_gives_nearly_the_same_picture(folders: dict[str, Path]) -> None:
    model = diffusion.load(generator_entry(folders["sd"], kinds=KINDS), CPU)
    before = picture(model, generate_task())
    assert isinstance(model, Frugal)
    assert model.economize()
    assert not model.economize()  # a CPU has nowhere to offload to
    after = picture(model, generate_task())
    assert np.abs(after.astype(int) - before).max() <= 1
    assert picture(model, edit_task(mask=mask_picture())).std() > 1


def test_only_an_accelerator_offloads() -> None:
    entry = generator_entry(Path("/nowhere"))
    card = replace(CPU, name="cuda:0", kind="cuda", memory_bytes=1_000)
    assert not offloads(entry.model_copy(update={"offload": "always"}), CPU, 2_000)
    assert not offloads(entry, card, 1_000)
    assert offloads(entry, card, 1_001)
    assert not offloads(entry.model_copy(update={"offload": "never"}), card, 1_001)
    assert offloads(entry.model_copy(update={"offload": "always"}), card, 1)


def test_after_slices_comes_offloading_pipeline_by_pipeline(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = diffusion.load(generator_entry(folders["sd"], kinds=KINDS), CPU)
    pipelines = model._pipelines
    monkeypatch.setattr(pipelines, "device", replace(CPU, name="cuda:0", kind="cuda"))
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "diffusers.DiffusionPipeline.enable_model_cpu_offload",
        lambda pipe, device: asked.append((type(pipe).__name__, device)),
    )
    whole_bytes = model.footprint_bytes
    assert [model.economize() for _ in range(3)] == [True, True, False]
    assert 0 < model.footprint_bytes < whole_bytes  # the largest component alone
    for mode in (Mode.TEXT, Mode.TEXT, Mode.IMAGE, Mode.TEXT):
        pipelines.get(mode)
    names = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionPipeline"]
    assert asked == [(name, "cuda:0") for name in names]
