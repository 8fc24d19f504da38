"""P12: the rows of the mask benchmark, and what they set beside each other."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import p12_masks
from bench.mask_scenes import scenes
from pixelkiln_worker.annotations import compressed, regions


@pytest.fixture(scope="module")
def small() -> dict[str, np.ndarray]:
    return scenes(side_px=96, instances=5)


def test_every_scene_shows_all_its_instances(small: dict[str, np.ndarray]) -> None:
    for name, ids in small.items():
        assert ids.shape == (96, 96), name
        assert set(np.unique(ids)) | {0} == {0, 1, 2, 3, 4, 5}, name


def test_the_scenes_measured_hold_twenty_instances_each() -> None:
    assert all(len(set(np.unique(ids)) - {0}) == 20 for ids in scenes().values())


def test_scenes_are_the_same_at_every_run(small: dict[str, np.ndarray]) -> None:
    again = scenes(side_px=96, instances=5)

    assert all(np.array_equal(again[name], ids) for name, ids in small.items())


@pytest.mark.parametrize("scene", ["blobs", "thin", "holes", "noise"])
def test_other_forms_hold_the_same_masks(small: dict[str, np.ndarray], scene: str) -> None:
    ids = small[scene]
    ours = p12_masks.document(ids, p12_masks.segmentation(ids)).encode()

    def masks(form: str) -> list[Any]:
        document = json.loads(p12_masks.other_document(ours, ids, form))
        return [one["segmentation"] for one in document["annotations"]]

    numbers = [one["id"] for one in json.loads(ours)["annotations"]]
    pictures, arrays = masks("PNG in base64"), masks("plain JSON arrays")
    runs = masks("run lengths as JSON numbers")
    for number, picture, array, run in zip(numbers, pictures, arrays, runs, strict=True):
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(str(picture)))))
        assert np.array_equal(shown, ids == number)
        assert np.array_equal(np.array(array, bool), ids == number)
        assert compressed(np.array(run["counts"])) == compressed(regions(ids)[number].counts)


def test_masks_that_differ_end_the_benchmark(
    small: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"scenes": {"blobs": {"encode_ms": 1.0, "document_ms": 1.0, "digest": "of something else"}}}
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: json.dumps(answer))

    with pytest.raises(RuntimeError, match="not those of pycocotools"):
        p12_masks.against_the_peer(tmp_path, tmp_path, {"blobs": small["blobs"]}, 1)
