"""Jobs that look at pictures through a real worker process: Celery, Redis, a folder, tiny real networks."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelkiln_shared.jobs import JobSpec, Result, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind, Role
from tests.tiny_models import photo_like
from tests.tiny_segmenters import eomt
from tests.tiny_vision_models import clip, dpt_depth, vit
from tests.worker_processes import TENANT, Stack, result_of

CATALOGUE = """
[models.tiny-depth]
title = "Depth"
family = "depth"
kinds = ["depth", "stereo"]
source = "{root}/depth"

[models.tiny-classes]
title = "Classes"
family = "classification"
kinds = ["classify"]
source = "{root}/vit"

[models.tiny-words]
title = "Words"
family = "classification"
kinds = ["classify"]
phrases = true
source = "{root}/clip"

[models.tiny-queries]
title = "Queries"
family = "universal"
kinds = ["segment"]
source = "{root}/eomt"
things = ["house"]
options = {{ task = ["panoptic", "instance", "semantic"] }}

[models.tiny-broken]
title = "Detector without its library"
family = "torchvision"
kinds = ["segment"]
source = "{root}/eomt"
"""
MODELS = "tiny-depth,tiny-classes,tiny-words,tiny-queries,tiny-broken,classical-cutout"


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    for name, save in (("depth", dpt_depth), ("vit", vit), ("clip", clip), ("eomt", eomt)):
        save(tmp_path / name)
    catalogue = tmp_path / "models.toml"
    catalogue.write_text(CATALOGUE.format(root=tmp_path))
    stack = Stack(
        redis_url,
        tmp_path,
        PIXELKILN_CATALOGUE=str(catalogue),
        PIXELKILN_WORKER_MODELS=MODELS,
        PIXELKILN_TORCH_THREADS="1",
        PIXELKILN_LEASE_S="15",
        PIXELKILN_HEARTBEAT_S="5",
    )
    yield stack
    stack.close()


def stored_picture(stack: Stack) -> dict[str, Any]:
    """Put a picture into the store as intake does; return its reference."""
    file = io.BytesIO()
    Image.fromarray(photo_like(160)[0][:, :120]).save(file, "PNG")
    data = file.getvalue()
    stack.storage.put("inputs/picture.png", data, media_type="image/png")
    sha256 = hashlib.sha256(data).hexdigest()
    return {"object": "inputs/picture.png", "sha256": sha256, "width": 120, "height": 160}


def job(kind: Kind, model: str, image: dict[str, Any], **given: Any) -> JobSpec:
    return JobSpec(id=new_id("job"), kind=kind, model=model, tenant=TENANT, input={"image": image, **given})


def opened(stack: Stack, result: Result, role: Role, index: int = 0) -> Image.Image:
    [key] = [a.key for a in result.artifacts if (a.role, a.index) == (role, index)]
    image = Image.open(io.BytesIO(stack.storage.get(key)))
    image.load()
    return image


def manifest_of(stack: Stack, result: Result) -> dict[str, Any]:
    [key] = [a.key for a in result.artifacts if a.role is Role.MANIFEST]
    document: dict[str, Any] = json.loads(stack.storage.get(key))
    return document


def test_every_kind_that_looks_at_a_picture_gives_its_files(stack: Stack) -> None:
    image = stored_picture(stack)
    ids = stack.submit(
        job(Kind.DEPTH, "tiny-depth", image),
        job(Kind.STEREO, "tiny-depth", image, disparity=0.1, format="png"),
        job(Kind.CUTOUT, "classical-cutout", image, format="png"),
        job(Kind.CLASSIFY, "tiny-classes", image, top=2),
        job(Kind.CLASSIFY, "tiny-words", image, labels=["a cat", "a disc"], top=5),
        job(Kind.SEGMENT, "tiny-queries", image, options={"task": "semantic"}),
        job(Kind.SEGMENT, "tiny-broken", image),
    )
    stack.start()
    *done, broken = stack.until(ids, seconds=90)
    assert [(record.status, record.error) for record in done] == [(Status.SUCCEEDED, None)] * 6
    depth, stereo, cutout, classes, words, segments = (result_of(record) for record in done)

    assert np.asarray(opened(stack, depth, Role.DEPTH)).dtype == np.uint16
    assert opened(stack, depth, Role.DEPTH).size == opened(stack, depth, Role.PREVIEW).size == (120, 160)

    assert opened(stack, stereo, Role.IMAGE, 0).size == (240, 160)
    assert opened(stack, stereo, Role.IMAGE, 1).size == (120, 160)
    one, other = (np.asarray(opened(stack, job, Role.DEPTH)) for job in (stereo, depth))
    assert np.array_equal(one, other)

    cut, mask = opened(stack, cutout, Role.CUTOUT), opened(stack, cutout, Role.MASK)
    assert (cut.mode, cut.size, mask.mode) == ("RGBA", (120, 160), "L")
    assert np.array_equal(np.asarray(cut)[..., 3], np.asarray(mask))

    for result in (classes, words):
        assert [artifact.role for artifact in result.artifacts] == [Role.MANIFEST]
        assert len(result.detail["classes"]) == 2
        assert manifest_of(stack, result)["detail"]["classes"] == result.detail["classes"]
    assert {line["label"] for line in words.detail["classes"]} == {"a cat", "a disc"}

    assert opened(stack, segments, Role.MASK).size == (120, 160)
    assert {artifact.role for artifact in segments.artifacts} >= {Role.OVERLAY, Role.ANNOTATIONS}

    assert broken.status is Status.FAILED
    assert '"model_unavailable"' in (broken.error or "")
    assert "torchvision" in (broken.error or "")
