"""The shipped models that read pictures open by the library's own classes, and know their world."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
    CLIPSegForImageSegmentation,
)

import pixelkiln_worker
from training.dataset import draw_scene
from training.world.grammar import CLASSES, FIRST_OBJECT_CLASS

EMBEDDED = Path(pixelkiln_worker.__file__).parent / "embedded"
SCENE = draw_scene("validation", 9)[1]


def resized(map_: torch.Tensor) -> NDArray[np.float32]:
    """(1, channels, h, w) at the scene's size, (channels, H, W)."""
    full = torch.nn.functional.interpolate(map_, size=SCENE.classes.shape, mode="bilinear")
    values: NDArray[np.float32] = full[0].numpy()
    return values


def overlap(read: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    return float((read & true).sum() / (read | true).sum())


@torch.no_grad()
def test_the_shipped_segmenter_labels_a_scene() -> None:
    net = AutoModelForSemanticSegmentation.from_pretrained(EMBEDDED / "toyworld-classes", dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(EMBEDDED / "toyworld-classes")
    read = resized(net(**processor(images=SCENE.image, return_tensors="pt")).logits).argmax(0)
    assert (read == SCENE.classes).mean() > 0.97


@torch.no_grad()
@pytest.mark.parametrize("size_px", [(128, 128), (200, 300), (64, 64)])
def test_the_shipped_depth_network_sees_near_and_far(size_px: tuple[int, int]) -> None:
    net = AutoModelForDepthEstimation.from_pretrained(EMBEDDED / "toyworld-depth", dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(EMBEDDED / "toyworld-depth")
    across = np.arange(size_px[1]) * 128 // size_px[1]
    down = np.arange(size_px[0]) * 128 // size_px[0]
    outputs = net(**processor(images=SCENE.image[down][:, across], return_tensors="pt"))
    read = processor.post_process_depth_estimation(outputs, target_sizes=[size_px])[0]["predicted_depth"]
    assert read.shape == size_px
    assert np.abs(read.numpy() - SCENE.depth[down][:, across]).mean() < 0.05


@pytest.fixture(scope="module")
def masks() -> dict[str, NDArray[np.bool_]]:
    """Masks of a few phrases about the scene."""
    folder = EMBEDDED / "toyworld-text"
    net = CLIPSegForImageSegmentation.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    texts = ["the yellow house", "the sky", "the red house", "a purple cactus"]
    pictures = [SCENE.image] * len(texts)
    inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = net(**inputs).logits
    return {text: resized(map_[None, None])[0] > 0 for text, map_ in zip(texts, logits, strict=True)}


def test_the_shipped_text_model_finds_what_is_named(masks: dict[str, NDArray[np.bool_]]) -> None:
    assert overlap(masks["the yellow house"], SCENE.classes >= FIRST_OBJECT_CLASS) > 0.7
    assert overlap(masks["the sky"], SCENE.classes == CLASSES.index("sky")) > 0.8


def test_the_shipped_text_model_finds_nothing_where_nothing_is(masks: dict[str, NDArray[np.bool_]]) -> None:
    assert masks["the red house"].mean() < 0.002
    assert masks["a purple cactus"].mean() < 0.002
