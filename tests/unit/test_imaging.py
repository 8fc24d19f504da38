"""Pixels to PNG with every value kept, and the overlay."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pixelkiln_worker import imaging, masks
from pixelkiln_worker.families.contract import Pixels

FACTS = {"model": {"sha256": "ab" * 32, "scheduler": "DDIMScheduler"}, "attempt": 2, "batch_size": 4}
TRAINED = b"digitalsourcetype/trainedAlgorithmicMedia"


def noise(height: int = 40, width: int = 56, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def opened(file: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


# ------------------------------------------------------------------------------------------------ PNG


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (40, 56), (257, 129)])
def test_every_value_survives_the_fast_png(size: tuple[int, int], channels: int) -> None:
    pixels = noise(*size, channels)

    assert np.array_equal(np.asarray(opened(imaging.png_of(pixels))), pixels)


def test_a_view_of_an_array_survives_too() -> None:
    pixels = noise(64, 64)[::2, 5:50][:, ::-1]

    assert np.array_equal(np.asarray(opened(imaging.png_of(pixels))), pixels)


def test_pillow_finds_the_file_sound() -> None:
    Image.open(io.BytesIO(imaging.png_of(noise()))).verify()
    Image.open(io.BytesIO(imaging.png_of_ids(np.arange(300, dtype=np.uint16).reshape(15, 20)))).verify()


def test_ids_up_to_255_are_a_palette_png_in_voc_colours() -> None:
    ids = np.arange(256, dtype=np.uint16).reshape(16, 16)

    image = opened(imaging.png_of_ids(ids))

    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), ids)
    colours = np.asarray(image.convert("RGB")).reshape(256, 3).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15] == [192, 128, 128]
    assert colours[255] == [224, 224, 192]
    assert len({tuple(colour) for colour in colours}) == 256


def test_more_ids_are_a_sixteen_bit_png() -> None:
    ids = np.linspace(0, 65_535, 48 * 32).astype(np.uint16).reshape(32, 48)

    image = opened(imaging.png_of_ids(ids))

    assert image.mode == "I;16"
    assert np.array_equal(np.asarray(image), ids)


# ------------------------------------------------------------------------------------------------ overlay


def test_the_overlay_tints_segments_and_dims_the_rest() -> None:
    image = np.full((60, 90, 3), 100, np.uint8)
    ids = np.zeros((60, 90), np.uint16)
    ids[10:50, 10:40], ids[10:50, 50:80] = 1, 2

    shown = masks.overlay(image, ids)

    assert shown.shape == image.shape
    assert len({tuple(shown[y, x]) for y, x in ((30, 20), (30, 65), (3, 3))}) == 3
    assert shown[3, 3].tolist() == [55, 55, 55]
    assert shown[30, 39].sum() > shown[30, 20].sum()  # the outline is brighter


def test_neighbouring_colours_are_far_apart() -> None:
    colours = masks.segment_colours().astype(int)

    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 90


def test_a_large_overlay_is_shrunk() -> None:
    image = noise(600, 3_000)
    ids: NDArray[np.uint16] = np.ones((600, 3_000), np.uint16)

    assert masks.overlay(image, ids).shape == (410, 2_048, 3)
