"""The foreground of a thing on a plain-ish ground, with no weights; and what makes an edge clean."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pixelkiln_shared.errors import InvalidInput
from pixelkiln_shared.kinds import Kind, Role
from pixelkiln_worker.families import alpha, cutout
from pixelkiln_worker.families.contract import Pixels
from tests.tiny_models import CPU, Steps
from tests.tiny_vision_models import entry_of, outcome, task_of


def studio(width: int = 320, height: int = 240) -> tuple[Pixels, np.ndarray]:
    """A clay mug on a backdrop that shades off to one side, with its shadow; and its true alpha."""
    across, down = width / 320, height / 240
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    image = np.stack([200 + 40 * rows, 205 + 35 * rows, 215 + 20 * columns], -1)
    shadow = np.zeros((height, width), np.float32)
    cv2.ellipse(shadow, _at(160, 205, across, down), _at(75, 10, across, down), 0, 0, 360, 1, -1)
    image *= (1 - 0.3 * cv2.GaussianBlur(shadow, (0, 0), 6 * across))[..., None]
    truth = np.zeros((height, width), np.uint8)
    cv2.ellipse(
        truth, _at(160, 120, across, down), _at(52, 76, across, down), 0, 0, 360, 255, -1, cv2.LINE_AA
    )
    thick = round(10 * across)
    handle = _at(224, 112, across, down), _at(28, 32, across, down)
    cv2.ellipse(truth, *handle, 0, 0, 360, 255, thick, cv2.LINE_AA)
    share = cv2.GaussianBlur(truth.astype(np.float32) / 255, (0, 0), 0.7)
    clay = np.stack([180 - 60 * columns, 60 + 20 * rows, np.full_like(rows, 40)], -1)
    image = image * (1 - share[..., None]) + clay * share[..., None]
    image += np.random.default_rng(0).normal(0, 3, image.shape)
    return image.clip(0, 255).astype(np.uint8), share


def _at(x: int, y: int, across: float, down: float) -> tuple[int, int]:
    return round(x * across), round(y * down)


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    one, two = found > 0.5, truth > 0.5
    return float((one & two).sum() / (one | two).sum())


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (1_400, 1_050)])
def test_a_mug_before_a_shaded_backdrop_is_cut_out_with_the_hole_of_its_handle(size: tuple[int, int]) -> None:
    image, truth = studio(*size)
    found = cutout.foreground(image)
    assert found.shape == image.shape[:2]
    assert overlap(found, truth) > 0.95
    assert np.abs(found - truth).mean() < 0.01
    assert found[round(size[1] * 112 / 240), round(size[0] * 224 / 320)] == 0  # inside the handle
    assert (found[: size[1] // 12] == 0).all()


def test_a_label_in_the_grounds_colour_is_part_of_the_box() -> None:
    image = np.full((200, 260, 3), (190, 170, 140), np.uint8)
    cv2.rectangle(image, (80, 40), (180, 170), (40, 80, 150), -1)
    cv2.circle(image, (130, 105), 28, (225, 205, 120), -1)
    found = cutout.foreground(image)
    assert found[105, 130] == 1
    assert overlap(found, cv2.rectangle(np.zeros((200, 260)), (80, 40), (180, 170), 1, -1)) > 0.97


def test_a_thing_may_touch_the_frame_below() -> None:
    image = np.full((200, 260, 3), (205, 212, 220), np.uint8)
    image += np.random.default_rng(2).integers(0, 5, image.shape, np.uint8)
    cv2.ellipse(image, (130, 210), (60, 130), 0, 0, 360, (170, 40, 30), -1)
    truth = cv2.ellipse(np.zeros((200, 260)), (130, 210), (60, 130), 0, 0, 360, 1, -1)
    assert overlap(cutout.foreground(image), truth) > 0.95


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_picture_has_no_foreground_and_says_so(value: int) -> None:
    model = cutout.load(entry_of("cutout", Kind.CUTOUT, ""), CPU)
    (found,) = model.run([task_of(Kind.CUTOUT, np.full((64, 96, 3), value, np.uint8))], Steps())
    assert [warning["code"] for warning in outcome(found).warnings] == ["nothing_found"]


def test_small_and_narrow_pictures_come_back_at_their_size() -> None:
    for shape in ((16, 16), (9, 120), (300, 11)):
        image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
        assert cutout.foreground(image).shape == shape


def test_a_job_gives_a_cutout_and_its_alpha_and_a_missing_picture_fails_alone() -> None:
    model = cutout.load(entry_of("cutout", Kind.CUTOUT, ""), CPU)
    watch = Steps()
    image, _ = studio()
    missing, found = model.run([task_of(Kind.CUTOUT, None), task_of(Kind.CUTOUT, image)], watch)
    assert isinstance(missing, InvalidInput)
    assert watch.seen == [(1, 2), (2, 2)]
    cut, mask = outcome(found).pictures
    assert (cut.role, mask.role) == (Role.CUTOUT, Role.MASK)
    assert cut.pixels.shape == (240, 320, 4)
    assert np.array_equal(cut.pixels[..., 3], mask.pixels)
    assert (cut.pixels[mask.pixels == 0] == 0).all()
    assert np.array_equal(cut.pixels[mask.pixels == 255][:, :3], image[mask.pixels == 255])
    assert "classical" in outcome(found).detail["note"]


def test_the_same_picture_gives_the_same_cutout_in_any_company() -> None:
    model = cutout.load(entry_of("cutout", Kind.CUTOUT, ""), CPU)
    image, _ = studio()
    other = image[:, ::-1].copy()
    together = [
        outcome(found) for found in model.run([task_of(Kind.CUTOUT, i) for i in (other, image)], Steps())
    ]
    alone = outcome(model.run([task_of(Kind.CUTOUT, image)], Steps())[0])
    assert np.array_equal(together[1].pictures[0].pixels, alone.pictures[0].pixels)


# ------------------------------------------------------------------------------------------------ the edge


def soft_disc() -> tuple[Pixels, np.ndarray, np.ndarray]:
    """A red disc with a soft edge on blue; the picture, its true alpha, and a rough one, coarse and hard."""
    rows, columns = np.mgrid[0:160, 0:160]
    share = ((60 - np.hypot(rows - 80, columns - 80)) / 6 + 0.5).clip(0, 1).astype(np.float32)
    image = share[..., None] * np.array((200, 30, 20)) + (1 - share[..., None]) * np.array((30, 60, 220))
    rough = cv2.resize((share > 0.5).astype(np.float32), (40, 40), interpolation=cv2.INTER_NEAREST)
    return np.rint(image).astype(np.uint8), share, rough


def test_a_rough_mask_takes_the_pictures_edge() -> None:
    image, truth, rough = soft_disc()
    found = alpha.refined(image, rough)
    blocky = cv2.resize(rough, (160, 160), interpolation=cv2.INTER_NEAREST)
    assert np.abs(found - truth).mean() < 0.6 * np.abs(blocky - truth).mean()
    assert found[80, 80] == 1
    assert found[2, 2] == 0


def test_the_edge_loses_the_grounds_colour() -> None:
    image, truth, _ = soft_disc()
    edge = (truth > 0.2) & (truth < 0.8)
    cleaned = alpha.cleaned(image, truth)
    bluish = image[edge][:, 2].astype(int).mean()
    assert bluish > 80
    assert cleaned[edge][:, 2].astype(int).mean() < 40
    assert np.abs(cleaned[edge][:, 0].astype(int) - 200).mean() < 20
    assert (cleaned[truth == 0] == 0).all()


def test_an_alpha_of_all_or_nothing_changes_no_colour() -> None:
    image = np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8)
    assert np.array_equal(alpha.cleaned(image, np.ones((40, 50), np.float32)), image)
    assert not alpha.cleaned(image, np.zeros((40, 50), np.float32)).any()
