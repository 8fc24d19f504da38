"""The point grid, the stability of masks, and masks that repeat each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pixelkiln_worker.families.everything import apart, fine, grid_marks, stability


def square(x: int, y: int, side: int, size: int = 32) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_the_grid_has_a_point_in_the_middle_of_each_cell() -> None:
    marks = grid_marks((60, 120), 3)
    spots = [(mark.points[0].x, mark.points[0].y) for mark in marks]
    assert spots == [(x, y) for y in (10, 30, 50) for x in (20, 60, 100)]
    assert all(mark.box is None and mark.points[0].positive for mark in marks)


def test_steep_edges_are_stable_and_flat_ones_are_not() -> None:
    steep = torch.where(square(8, 8, 16), 9.0, -9.0)
    flat = torch.linspace(-4, 4, 32).expand(32, 32)
    nothing = torch.full((32, 32), -9.0)
    values = stability(torch.stack([steep, flat, nothing]))
    assert values[0] == 1
    assert values[1] == pytest.approx(12 / 20, abs=0.05)  # 3 of 8 above 1, 5 of 8 above -1
    assert values[2] == 0


def test_a_small_object_of_a_coarse_network_is_not_called_unstable() -> None:
    rows, columns = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    disc = 30 * (2.25 - torch.hypot(rows - 16.5, columns - 16.5))[None]  # 21 pixels, eight of them in doubt
    assert stability(disc)[0] < 0.65
    assert stability(fine(disc))[0] == pytest.approx((2.25 - 1 / 30) ** 2 / (2.25 + 1 / 30) ** 2, abs=0.02)
    assert fine(disc).shape == (1, 256, 256)
    assert fine(torch.zeros(2, 200, 256)).shape == (2, 200, 256)
    assert fine(torch.zeros(0, 16, 32)).shape == (0, 16, 32)


def test_of_masks_that_repeat_each_other_the_surest_stays() -> None:
    masks = torch.stack([square(0, 0, 16), square(1, 0, 16), square(0, 0, 8), square(20, 20, 8)])
    scores = torch.tensor([0.8, 0.9, 0.7, 0.95])
    assert apart(masks, scores, 0.7, 255).tolist() == [3, 1, 2]  # 15/17 alike; a quarter of it is its own


def test_empty_masks_are_dropped_and_no_more_than_asked_stay() -> None:
    masks = torch.stack([square(0, 0, 4), torch.zeros(32, 32, dtype=torch.bool), square(10, 10, 4)])
    assert apart(masks, torch.tensor([0.1, 0.9, 0.2]), 0.7, 255).tolist() == [2, 0]
    assert apart(masks, torch.tensor([0.1, 0.9, 0.2]), 0.7, 1).tolist() == [2]
    assert apart(masks[:0], torch.empty(0), 0.7, 255).tolist() == []


def test_masks_touching_only_at_their_boxes_are_both_kept() -> None:
    rows, columns = np.mgrid[0:32, 0:32]
    stripes = [torch.from_numpy(np.abs(rows - columns - shift) < 2) for shift in (-3, 3)]
    assert len(apart(torch.stack(stripes), torch.tensor([0.9, 0.8]), 0.7, 255)) == 2
