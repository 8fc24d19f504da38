"""Points, phrases and both through real worker processes, with an operator's catalogue of tiny networks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelkiln_shared import keys
from pixelkiln_shared.jobs import JobSpec, Result, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind, Role
from pixelkiln_shared.ledger.contract import Record
from pixelkiln_worker.families.contract import Pixels
from tests.picture_files import saved
from tests.tiny_models import photo_like
from tests.tiny_networks import clipseg, owlvit, sam
from tests.worker_processes import TENANT, Stack, result_of, wait_for

CATALOGUE = """
[models.tiny-points]
title = "Tiny SAM"
family = "promptable"
kinds = ["segment"]
marks = "optional"
source = "{root}/sam"
defaults = {{ threshold = 0.05, stability = 0.0 }}
options = {{ points_per_side = [2, 4, 8] }}

[models.tiny-text]
title = "Tiny CLIPSeg"
family = "phrases"
kinds = ["segment"]
phrases = true
source = "{root}/clipseg"
defaults = {{ threshold = 0.3 }}

[models.tiny-grounded]
title = "Tiny OWL-ViT and SAM"
family = "grounded"
kinds = ["segment"]
phrases = true
source = "{root}/owlvit"

[models.tiny-grounded.companions.segmenter]
source = "{root}/sam"
"""
CLICK = {"points": [{"x": 60.0, "y": 70.0, "positive": True}]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for make in (sam, clipseg, owlvit):
        make(root / make.__name__)
    (root / "catalogue.toml").write_text(CATALOGUE.format(root=root))
    return root


@pytest.fixture
def stack(redis_url: str, tmp_path: Path, root: Path) -> Iterator[Stack]:
    stack = Stack(
        redis_url,
        tmp_path,
        PIXELKILN_CATALOGUE=str(root / "catalogue.toml"),
        PIXELKILN_WORKER_MODELS="tiny-points,tiny-text,tiny-grounded",
        PIXELKILN_TORCH_THREADS="1",
    )
    yield stack
    stack.close()


def spec(stack: Stack, model: str, image: Pixels, **fields: Any) -> JobSpec:
    """Return a job on a picture, which lies in the store when it returns."""
    name, data = new_id("job"), saved(Image.fromarray(image), "PNG")
    ref = {
        "object": keys.input_key(TENANT, name),
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": image.shape[1],
        "height": image.shape[0],
    }
    stack.storage.put(ref["object"], data, media_type="image/png")
    given = {"image": ref, "labels": [], "points": [], "boxes": [], "options": {}} | fields
    return JobSpec(id=name, kind=Kind.SEGMENT, model=model, tenant=TENANT, input=given)


def mask_of(record: Record) -> str:
    """Return the hash of a result's mask."""
    [mask] = [artifact for artifact in result_of(record).artifacts if artifact.role is Role.MASK]
    return mask.sha256


def kept(stack: Stack) -> list[str]:
    return [stored.key for stored in stack.storage.list(keys.embeddings_prefix(TENANT))]


def wait_until_kept(stack: Stack, count: int) -> list[str]:
    """Embeddings are stored after the result is published."""
    return wait_for(lambda: found if len(found := kept(stack)) == count else None, 10, "nothing was kept")


def test_each_family_serves_its_lane(stack: Stack) -> None:
    stack.start()
    image = photo_like()[0][:150]
    asked: dict[str, dict[str, Any]] = {
        "tiny-points": CLICK,
        "tiny-text": {"labels": ["red disc", "sea"]},
        "tiny-grounded": {"labels": ["red disc", "sea"], "threshold": 0.3},
    }
    records = stack.until(
        stack.submit(*(spec(stack, model, image, **fields) for model, fields in asked.items()))
    )
    assert [record.status for record in records] == [Status.SUCCEEDED] * 3
    for record, names in zip(records, ({"object 1"}, {"red disc", "sea"}, {"red disc", "sea"}), strict=True):
        result: Result = result_of(record)
        assert {Role.MASK, Role.OVERLAY, Role.ANNOTATIONS} <= {a.role for a in result.artifacts}
        assert set(result.detail["labels"]) <= names
        assert result.detail["labels"]


def test_everything_is_found_on_a_grid_the_job_chooses(stack: Stack) -> None:
    stack.start()
    [record] = stack.until(
        stack.submit(spec(stack, "tiny-points", photo_like()[0], options={"points_per_side": 2}))
    )
    assert record.status is Status.SUCCEEDED
    assert "object 1" in result_of(record).detail["labels"]


@pytest.mark.slow
def test_a_second_worker_sees_with_what_the_first_kept(stack: Stack) -> None:
    """The kept embeddings are swapped: a worker that reads them finds the other picture's masks."""
    one, other = photo_like()[0], 255 - photo_like()[0][::-1]
    stack.start()
    masks, names = [], []
    for image in (one, np.ascontiguousarray(other)):
        [record] = stack.until(stack.submit(spec(stack, "tiny-points", image, **CLICK)))
        masks.append(mask_of(record))
        names.append(next(key for key in wait_until_kept(stack, len(masks)) if key not in names))
    assert masks[0] != masks[1]
    stack.launchers[0].terminate()
    assert stack.launchers[0].wait(timeout=15) == 0
    data = [stack.storage.get(name) for name in names]
    stack.storage.put(names[0], data[1], media_type="application/vnd.safetensors")
    second = stack.start()
    [record] = stack.until(stack.submit(spec(stack, "tiny-points", one, **CLICK)))
    assert record.worker == second.id
    assert mask_of(record) == masks[1]
    assert sorted(kept(stack)) == sorted(names)
