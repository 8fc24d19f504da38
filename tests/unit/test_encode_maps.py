"""Files of depth maps, alphas and several pictures: every value survives, and each role counts from 0."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind, Role
from pixelkiln_worker import imaging, masks
from pixelkiln_worker.encode import EncodedFile, encode
from pixelkiln_worker.families.contract import Outcome, Picture


def job(kind: Kind, **given: Any) -> JobSpec:
    return JobSpec(id="job_1", kind=kind, model="m", tenant="acme", input={"image": {}, **given})


def read(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def names(files: list[EncodedFile]) -> list[tuple[Role, int, str]]:
    return [(file.role, file.index, file.name) for file in files]


@pytest.mark.parametrize("shape", [(256, 256), (1, 7), (33, 1)])
def test_every_value_of_a_16_bit_map_survives(shape: tuple[int, int]) -> None:
    values = (
        np.random.default_rng(0).permutation(65_536)[: shape[0] * shape[1]].astype(np.uint16).reshape(shape)
    )
    for flat in (False, True):
        image = read(imaging.png_of_grey(values, flat=flat))
        assert image.mode == "I;16"
        assert np.array_equal(np.asarray(image), values)


def test_every_value_of_an_8_bit_map_survives() -> None:
    values = np.random.default_rng(1).permutation(256).astype(np.uint8).reshape(8, 32)
    image = read(imaging.png_of_grey(values))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), values)


def test_depth_is_stored_in_65_536_levels_and_shown_in_colours() -> None:
    depth = np.linspace(0, 1, 40 * 64, dtype=np.float32).reshape(40, 64)
    files = encode(job(Kind.DEPTH), Outcome(depth=depth), facts={})
    assert names(files) == [
        (Role.DEPTH, 0, "0.depth.png"),
        (Role.PREVIEW, 0, "0.preview.webp"),
        (Role.MANIFEST, 0, "manifest.json"),
    ]
    stored = np.asarray(read(files[0].data))
    assert stored.dtype == np.uint16
    assert np.array_equal(stored, np.round(depth * np.float32(65_535)).astype(np.uint16))
    assert (stored[0, 0], stored[-1, -1]) == (0, 65_535)
    assert read(files[1].data).size == (64, 40)
    assert {(file.width, file.height) for file in files[:2]} == {(64, 40)}


def test_numbers_beyond_the_range_are_cut_off_not_wrapped() -> None:
    depth = np.array([[-0.5, 0.5], [1.0, 1.5]], np.float32)
    stored = np.asarray(read(encode(job(Kind.DEPTH), Outcome(depth=depth), facts={})[0].data))
    assert stored.tolist() == [[0, 32_768], [65_535, 65_535]]


def test_near_is_bright_far_is_dark_and_nothing_between_goes_back() -> None:
    colours = masks.depth_colours(np.tile(np.linspace(0.4, 0.6, 256, dtype=np.float32), (2, 1)))
    brightness = colours[0].astype(float) @ (0.299, 0.587, 0.114)
    assert brightness[0] < 5  # the map's own range is stretched over the colours
    assert brightness[-1] > 230
    assert (np.diff(brightness) > -2).all()
    assert colours[0, 128, 0] > colours[0, 128, 2]  # Inferno, in RGB order: its middle is red


def test_a_flat_depth_has_one_colour() -> None:
    assert len(np.unique(masks.depth_colours(np.full((6, 6), 0.7, np.float32)).reshape(-1, 3), axis=0)) == 1


def test_a_cutout_job_gives_an_rgba_picture_and_its_grey_alpha() -> None:
    cut = np.random.default_rng(2).integers(0, 256, (20, 30, 4), np.uint8)
    pictures = (Picture(pixels=cut, role=Role.CUTOUT), Picture(pixels=cut[..., 3], role=Role.MASK))
    files = encode(job(Kind.CUTOUT, format="png"), Outcome(pictures=pictures), facts={})
    assert names(files)[:2] == [(Role.CUTOUT, 0, "0.cutout.png"), (Role.MASK, 0, "0.mask.png")]
    assert np.array_equal(np.asarray(read(files[0].data)), cut)
    assert np.array_equal(np.asarray(read(files[1].data)), cut[..., 3])


def test_an_alpha_stays_exact_whatever_form_the_cutout_has() -> None:
    cut = np.random.default_rng(2).integers(0, 256, (20, 30, 4), np.uint8)
    pictures = (Picture(pixels=cut, role=Role.CUTOUT), Picture(pixels=cut[..., 3], role=Role.MASK))
    files = encode(job(Kind.CUTOUT, format="webp"), Outcome(pictures=pictures), facts={})
    assert [file.name for file in files[:2]] == ["0.cutout.webp", "0.mask.png"]
    assert read(files[0].data).mode == "RGBA"
    assert np.array_equal(np.asarray(read(files[1].data)), cut[..., 3])


def test_a_stereo_job_gives_two_pictures_and_its_depth_each_role_counted_from_0() -> None:
    pair, glasses = np.zeros((20, 60, 3), np.uint8), np.zeros((20, 30, 3), np.uint8)
    made = Outcome(
        pictures=(Picture(pixels=pair), Picture(pixels=glasses)), depth=np.zeros((20, 30), np.float32)
    )
    files = encode(job(Kind.STEREO, format="jpeg"), made, facts={})
    assert names(files) == [
        (Role.IMAGE, 0, "0.jpg"),
        (Role.IMAGE, 1, "1.jpg"),
        (Role.DEPTH, 0, "0.depth.png"),
        (Role.PREVIEW, 0, "0.preview.webp"),
        (Role.MANIFEST, 0, "manifest.json"),
    ]
    assert [(file.width, file.height) for file in files[:3]] == [(60, 20), (30, 20), (30, 20)]


def test_a_classification_is_its_manifest() -> None:
    classes = [{"label": "house", "score": 0.75}]
    (manifest,) = encode(job(Kind.CLASSIFY), Outcome(detail={"classes": classes}), facts={})
    assert (manifest.role, manifest.name) == (Role.MANIFEST, "manifest.json")
    assert '"classes":[{"label":"house","score":0.75}]' in json.dumps(
        json.loads(manifest.data), separators=(",", ":")
    )
