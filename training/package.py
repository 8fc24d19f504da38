"""Puts trained parts together as the worker ships them: plain diffusers and transformers models in fp16."""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    AutoPipelineForText2Image,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
)

from training.borders import load_encoder
from training.cards import write_generator_card, write_part_card
from training.crisp_decoder import load_crisp_decoder
from training.dataset import write_json
from training.generator import load_generator
from training.large_decoder import load_large_autoencoder
from training.parts import part
from training.tokenizer import build_tokenizer

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""transformers 5 would write a class name that older readers lack."""


def build_scheduler() -> DPMSolverMultistepScheduler:
    """A second-order solver for rectified flow; 12 to 16 steps suffice."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=2.0,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        steps_offset=1,  # what StableDiffusionPipeline insists on; flow sigmas do not read it
    )


def build_pipeline(generator: Path, large_decoder: Path, latent_scale: float) -> StableDiffusionPipeline:
    """The text-to-image pipeline from the averaged weights of two runs, in fp32."""
    unet, text_encoder = load_generator(generator)
    vae = load_large_autoencoder(large_decoder)
    vae.register_to_config(scaling_factor=latent_scale)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(),
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def package_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Save `pipeline` to `folder` as fp16 safetensors that diffusers' Auto classes load."""
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    _edit_json(folder / "model_index.json", lambda index: index["tokenizer"].__setitem__(1, TOKENIZER_CLASS))
    tokenizer_class = {"tokenizer_class": TOKENIZER_CLASS}
    _edit_json(folder / "tokenizer" / "tokenizer_config.json", lambda config: config.update(tokenizer_class))
    _tidy_vae(folder / "vae")


def package_vae(vae: AutoencoderTiny, folder: Path) -> None:
    """Save an auto-encoder into its place in a packaged pipeline."""
    vae.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    _tidy_vae(folder)


def _tidy_vae(folder: Path) -> None:
    # diffusers warns of the first entry when it reads it back; the second is a path of this machine
    for entry in ("block_out_channels", "_name_or_path"):
        _edit_json(folder / "config.json", partial(_forget, entry=entry))


def _forget(config: dict[str, Any], *, entry: str) -> None:
    config.pop(entry, None)


def _edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    write_json(path, content)


def package(out: Path, shipped: Path) -> None:
    """Put the generator into ``out/packaged``, however far its runs under `out` are.

    Where there is no run of the generator the shipped one is taken, so that its decoder can be trained on.
    """
    folder = out / "packaged" / "toyworld"
    if (out / "generator" / "latents.json").exists():
        scale = json.loads((out / "generator" / "latents.json").read_text())["scale"]
        shutil.copytree(
            out / "generator", out / "frozen", ignore=shutil.ignore_patterns("*.npy"), dirs_exist_ok=True
        )
        package_pipeline(build_pipeline(out / "frozen", out / "large-decoder", scale), folder)
    elif not folder.exists():
        shutil.copytree(shipped / "toyworld", folder)
    vae = load_packaged(out).vae
    mended = load_encoder(out / "borders", vae)
    if (out / "crisp-decoder" / "state.json").exists():
        load_crisp_decoder(out / "crisp-decoder", vae)
        mended = True
    if mended:
        package_vae(vae, folder / "vae")
    _let_others_read(folder)


def package_part(name: str, out: Path) -> None:
    """Put the model of a part into ``out/packaged``."""
    module = part(name)
    folder = out / "packaged" / module.MODEL
    shutil.rmtree(folder, ignore_errors=True)
    module.package(out / name, folder)
    _let_others_read(folder)


def _let_others_read(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors lets only the owner read what it writes


def load_packaged(out: Path) -> StableDiffusionPipeline:
    """The packaged pipeline in fp32, as a worker on a CPU loads it."""
    return open_pipeline(out / "packaged" / "toyworld")


def open_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The pipeline in `folder` in fp32."""
    absent = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    pipeline = AutoPipelineForText2Image.from_pretrained(folder, torch_dtype=torch.float32, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ship(out: Path, target: Path) -> None:
    """Replace the generator under `target` by the packaged one, with its card and what was measured."""
    packaged, evaluation = out / "packaged" / "toyworld", out / "evaluation"
    bounds = json.loads((evaluation / "ceilings.json").read_text())
    scores = json.loads((evaluation / "generator.json").read_text())
    shutil.copy(evaluation / "examples.webp", packaged / "examples.webp")
    write_generator_card(out, packaged, scores | bounds)
    _ship_folder(packaged, target)


def ship_part(name: str, out: Path, target: Path) -> None:
    """Replace the model of a part under `target`, with its card and what was measured."""
    packaged = out / "packaged" / part(name).MODEL
    scores = json.loads((out / "evaluation" / f"{name}.json").read_text())
    write_part_card(name, out, packaged, scores)
    _ship_folder(packaged, target)


def _ship_folder(packaged: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    write_checksums(packaged)
    _replace_folder(packaged, target / packaged.name)


def write_checksums(folder: Path) -> None:
    """Write `SHA256SUMS` as `sha256sum` does: what a worker holds the weights to before it loads them."""
    weights = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in weights]
    (folder / "SHA256SUMS").write_text("".join(sums))


def _replace_folder(source: Path, target: Path) -> None:
    """Copy `source` beside `target` first, so that a reader finds the old folder or the new one."""
    new, old = (target.with_name(f".{target.name}.{state}") for state in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(source, new)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
