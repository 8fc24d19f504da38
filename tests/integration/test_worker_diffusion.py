"""Edits and enlargements through a real worker process that serves an operator's own catalogue."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelkiln_shared.jobs import JobSpec, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind, ObjectRef, Role
from pixelkiln_shared.ledger.contract import Record
from tests import tiny_models
from tests.tiny_models import SIDE_PX
from tests.tiny_pipelines import lora, mask_picture, scene
from tests.worker_processes import TENANT, Stack, result_of

CATALOGUE = """
[models.tiny]
title = "Tiny"
family = "diffusion"
kinds = ["generate", "edit"]
source = "{model}"
prompt = "optional"
defaults = {{ width = 32, height = 32, steps = 3, guidance = 3.0 }}
limits = {{ max_batch = 4, min_side = 16 }}
options = {{ scheduler = ["ddim"], lora = ["ink"] }}

[models.tiny.loras.ink]
source = "{lora}"
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("weights")
    model = tiny_models.stable_diffusion(root / "sd")
    return {"model": model, "lora": lora(root / "lora", model)}


@pytest.fixture
def stack(redis_url: str, tmp_path: Path, weights: dict[str, Path]) -> Iterator[Stack]:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text(CATALOGUE.format(**weights))
    stack = Stack(
        redis_url,
        tmp_path,
        PIXELKILN_CATALOGUE=str(catalogue),
        PIXELKILN_WORKER_MODELS="tiny,classical-lanczos",
        PIXELKILN_TORCH_THREADS="1",
    )
    yield stack
    stack.close()


def stored(stack: Stack, pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = file.getvalue()
    key = f"{TENANT}/inputs/{new_id('job')}.png"
    stack.storage.put(key, data, media_type="image/png")
    height, width = pixels.shape[:2]
    reference = ObjectRef(object=key, sha256=hashlib.sha256(data).hexdigest(), width=width, height=height)
    return reference.model_dump(mode="json")


def job(kind: Kind, model: str = "tiny", **fields: Any) -> JobSpec:
    shape = {"width": SIDE_PX, "height": SIDE_PX, "steps": 4, "guidance": 3.0, "strength": 0.75, "seed": 7}
    return JobSpec(
        id=new_id("job"),
        kind=kind,
        model=model,
        tenant=TENANT,
        input=shape | {"negative_prompt": "", "format": "png", "options": {}} | fields,
    )


def image_of(stack: Stack, record: Record) -> np.ndarray:
    assert record.status is Status.SUCCEEDED, record.error
    [artifact] = [one for one in result_of(record).artifacts if one.role is Role.IMAGE]
    return np.asarray(Image.open(io.BytesIO(stack.storage.get(artifact.key))).convert("RGB"))


@pytest.mark.slow
def test_pictures_are_edited_redrawn_in_masks_and_made_larger(stack: Stack) -> None:
    image, mask = scene(SIDE_PX, SIDE_PX), mask_picture(SIDE_PX, SIDE_PX)
    reference = stored(stack, image)
    masked: dict[str, Any] = {"mask": stored(stack, mask)}
    ids = stack.submit(
        job(Kind.EDIT, prompt="a red house", image=reference),
        job(Kind.EDIT, prompt=None, image=reference, **masked),
        job(Kind.EDIT, prompt="a red house", image=reference, options={"lora": "ink", "scheduler": "ddim"}),
        job(Kind.UPSCALE, "classical-lanczos", image=reference, scale=2),
    )
    stack.start()
    edited, redrawn, inked, larger = stack.until(ids, seconds=60)
    assert result_of(edited).metrics["batch_size"] == 2  # with and without a mask share a batch
    assert image_of(stack, edited).shape == image.shape
    outside = mask.max(axis=2) == 0
    assert np.array_equal(image_of(stack, redrawn)[outside], image[outside])
    assert not np.array_equal(image_of(stack, inked), image_of(stack, edited))
    assert result_of(inked).detail["lora"]["name"] == "ink"
    assert result_of(inked).detail["scheduler"] == "ddim"
    assert image_of(stack, larger).shape == (2 * SIDE_PX, 2 * SIDE_PX, 3)
