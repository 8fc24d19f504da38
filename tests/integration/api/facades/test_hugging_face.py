"""Hugging Face's inference API by Hugging Face's own client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from tests.integration.api.facades.conftest import Service, opened


def test_text_becomes_a_picture(service: Service) -> None:
    picture = service.hugging_face("text-to-image", "stub").text_to_image(
        "a hill",
        width=96,
        height=64,
        num_inference_steps=2,
        guidance_scale=2.0,
        seed=3,
        negative_prompt="fog",
    )
    assert picture.size == (96, 64)
    asked = service.jobs(kind="generate")[0]["input"]
    assert (asked["steps"], asked["guidance"], asked["seed"]) == (2, 2.0, 3)


def test_a_picture_becomes_another(service: Service, scene: bytes) -> None:
    picture = service.hugging_face("image-to-image", "toyworld").image_to_image(scene, prompt="a blue house")
    assert picture.size == opened(scene).size
    assert np.abs(np.asarray(picture, np.int16) - np.asarray(opened(scene), np.int16)).mean() > 1


@pytest.mark.parametrize("parameters", [{}, {"threshold": 0.3}])
def test_segments_have_label_mask_and_score(
    service: Service, scene: bytes, parameters: dict[str, Any]
) -> None:
    found = service.hugging_face("image-segmentation", "toyworld-instances").image_segmentation(
        scene, **parameters
    )
    assert "house" in {one.label for one in found}
    job = service.jobs(kind="segment")[0]
    assert job["input"].get("threshold") == parameters.get("threshold")
    (described,) = (one["url"] for one in job["artifacts"] if one["role"] == "annotations")
    annotations = service.http.get(described).json()["annotations"]
    for one, annotation in zip(found, annotations, strict=True):
        mask = np.asarray(one.mask)
        assert mask.shape == opened(scene).size[::-1]
        assert set(np.unique(mask)) == {0, 255}
        assert (int((mask == 255).sum()), one.score) == (annotation["area"], annotation["score"])


def test_boxes_fit_their_masks(service: Service, scene: bytes) -> None:
    client = service.hugging_face("object-detection", "toyworld-instances")
    boxes = client.object_detection(scene, threshold=0.3)
    segments = service.hugging_face("image-segmentation", "toyworld-instances").image_segmentation(
        scene, threshold=0.3
    )
    assert len(boxes) == len(segments) > 0
    for box, segment in zip(boxes, segments, strict=True):
        around = Image.fromarray(np.asarray(segment.mask)).getbbox()
        assert (box.box.xmin, box.box.ymin, box.box.xmax, box.box.ymax) == around
        assert (box.label, box.score) == (segment.label, segment.score)


def test_errors_are_texts_that_client_shows(service: Service, scene: bytes) -> None:
    with pytest.raises(HfHubHTTPError, match="num_inference_steps: "):
        service.hugging_face("text-to-image", "stub").text_to_image("a hill", num_inference_steps=0)
    with pytest.raises(HfHubHTTPError, match="sead: there is no such parameter"):
        service.hugging_face("text-to-image", "stub").text_to_image("a hill", extra_body={"sead": 1})
    with pytest.raises(HfHubHTTPError, match="not-a-model"):
        service.hugging_face("text-to-image", "not-a-model").text_to_image("a hill")
    with pytest.raises(HfHubHTTPError, match="no picture"):
        service.hugging_face("image-segmentation", "toyworld-classes").image_segmentation(b"no picture")
    with pytest.raises(HfHubHTTPError, match="text-to-image"):
        service.hugging_face("summarization", "stub").text_to_image("a hill")
    told = service.http.post("/hf/text-to-image/stub", json={"inputs": 3})
    assert (told.status_code, told.json()["code"]) == (422, "missing_field")
