"""Sheets of pictures with what was found in them, for the model cards."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.matching import Segment
from training.world.grammar import FIRST_OBJECT_CLASS

Picture = NDArray[np.uint8]


def paint_segments(image: Picture, segments: list[Segment]) -> Picture:
    """A picture, (H, W, 3), under one colour for each object, paler for the backdrop, with white outlines."""
    rng = np.random.default_rng(7)
    painted = image.astype(np.float32)
    for name, mask in segments:
        strength = 0.6 if name >= FIRST_OBJECT_CLASS else 0.2
        painted[mask] = painted[mask] * (1 - strength) + rng.uniform(40, 255, 3) * strength
        if name >= FIRST_OBJECT_CLASS:
            painted[outline(mask)] = 255
    return np.clip(painted, 0, 255).astype(np.uint8)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask that touch its outside."""
    inner: NDArray[np.bool_] = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    return mask & ~inner


def paint_answer(
    image: Picture,
    mask: NDArray[np.bool_],
    click: tuple[int, int] | None = None,
    box: NDArray[np.float32] | None = None,
) -> Picture:
    """A picture with a mask laid over it in red, and the click (x, y) or the XYXY box that asked for it."""
    painted = image.copy()
    painted[mask] = painted[mask] // 2 + np.array([127, 20, 20], np.uint8)
    painted[outline(mask)] = 255
    if box is not None:
        left, top, right, bottom = (int(edge) for edge in box)
        cv2.rectangle(painted, (left, top), (right, bottom), (255, 255, 0), 1)
    if click is not None:
        cv2.drawMarker(painted, click, (255, 255, 0), cv2.MARKER_CROSS, 9, 1)
    return painted


def write_sheet(path: Path, rows: list[list[Picture]]) -> None:
    """Rows of pictures of one size as a WebP."""
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    Image.fromarray(sheet).save(path, quality=85)
