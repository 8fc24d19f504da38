"""Two views from one picture: what moves, by how much, and what fills the gaps."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pixelkiln_worker.families import stereo
from pixelkiln_worker.families.contract import Pixels
from training.world import render, sample_spec

RED = (255, 0, 0)


def scene(near: float = 1.0) -> tuple[Pixels, np.ndarray]:
    """A red square, 60 to 90 across and 20 to 40 down, in front of noise that is far."""
    image = np.random.default_rng(0).integers(0, 200, (64, 160, 3), np.uint8)
    depth = np.zeros((64, 160), np.float32)
    image[20:40, 60:90] = RED
    depth[20:40, 60:90] = near
    return image, depth


def square_in(view: Pixels) -> tuple[int, int, int, int]:
    """Left, right, top, bottom of what is red; right and bottom exclusive."""
    rows, columns = np.nonzero((view == RED).all(-1))
    return int(columns.min()), int(columns.max()) + 1, int(rows.min()), int(rows.max()) + 1


@pytest.mark.parametrize(("near", "moved"), [(1.0, 6), (0.5, 3)])
def test_what_is_near_moves_by_half_the_disparity_in_each_view(near: float, moved: int) -> None:
    left, right = stereo.views(*scene(near), 12)
    assert square_in(left) == (60 + moved, 90 + moved, 20, 40)
    assert square_in(right) == (60 - moved, 90 - moved, 20, 40)
    for view in (left, right):
        assert (view == RED).all(-1).sum() == 30 * 20


def test_what_is_far_stays() -> None:
    image, depth = scene()
    far = np.ones(depth.shape, bool)
    far[17:43, 51:99] = False  # the square, where it may go, and the rim that goes with it
    for view in stereo.views(image, depth, 12):
        assert np.array_equal(view[far], image[far])


def test_holes_are_filled_from_behind_and_not_with_the_thing() -> None:
    image, depth = scene()
    image[...] = (0, 0, 255)
    image[20:40, 60:90] = RED
    for view in stereo.views(image, depth, 16):
        colours = {tuple(colour) for colour in view.reshape(-1, 3).tolist()}
        assert colours == {RED, (0, 0, 255)}


def test_a_thing_at_the_frame_leaves_no_gap_there() -> None:
    image, depth = scene()
    depth[:, :40] = 1.0
    image[:, :40] = (0, 255, 0)
    left, right = stereo.views(image, depth, 16)
    assert (left[5, :48] == (0, 255, 0)).all()
    assert (right[5, :32] == (0, 255, 0)).all()


def test_an_outline_drawn_as_a_ramp_is_not_stretched() -> None:
    image, depth = scene()
    for step, value in enumerate((0.75, 0.5, 0.25), start=1):  # as networks draw it, three pixels wide
        depth[20:40, 60 - step] = depth[20:40, 89 + step] = value
    left, _ = stereo.views(image, depth, 12)
    first, last, _, _ = square_in(left)
    assert (first, last) == (66, 96)
    assert ((left == RED).all(-1).sum(1)[22:38] == 30).all()


def test_single_pixels_of_noise_do_not_move() -> None:
    image, depth = scene(0.0)
    depth[::9, ::11] = 1.0
    for view in stereo.views(image, depth, 12):
        assert np.array_equal(view, image)


def test_no_depth_gives_the_picture_twice() -> None:
    image, depth = scene(0.0)
    left, right = stereo.views(image, depth, 12)
    assert np.array_equal(left, image)
    assert np.array_equal(right, image)
    assert np.array_equal(stereo.side_by_side(left, right), np.hstack([image, image]))


def test_an_anaglyph_of_grey_is_grey_and_splits_the_views_by_filter() -> None:
    grey = np.full((8, 8, 3), 140, np.uint8)
    assert np.abs(stereo.anaglyph(grey, grey).astype(int) - 140).max() <= 3
    white, black = np.full_like(grey, 255), np.zeros_like(grey)
    red, green, blue = stereo.anaglyph(white, black)[0, 0].tolist()
    assert red == 255
    assert max(green, blue) < 30
    red, green, blue = stereo.anaglyph(black, white)[0, 0].tolist()
    assert red == 0
    assert min(green, blue) > 240


def test_a_drawn_scene_keeps_its_things_whole() -> None:
    rng = np.random.default_rng(3)
    drawn = render(sample_spec(rng), rng, 256)
    disparity_px = 12.0
    left, right = stereo.views(drawn.image, drawn.depth, disparity_px)
    for number, _ in enumerate(drawn.objects, start=1):
        inside = drawn.instances == number
        rows, columns = np.nonzero(inside)
        shift = round(float(np.median(drawn.depth[inside])) * disparity_px / 2)
        for view, side in ((left, shift), (right, -shift)):
            there = (columns + side).clip(0, 255)
            off = np.abs(view[rows, there].astype(int) - drawn.image[rows, columns]).max(-1)
            assert (off < 40).mean() > 0.93


def test_a_megapixel_takes_well_under_a_second() -> None:
    image = np.zeros((1000, 1000, 3), np.uint8)
    depth = np.tile(np.linspace(0, 1, 1000, dtype=np.float32), (1000, 1))
    began = time.process_time()
    stereo.anaglyph(*stereo.views(image, depth, 30))
    assert time.process_time() - began < 2.0  # 0.2 s on a quiet core
