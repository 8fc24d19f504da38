"""Pixels to picture files. PNG is written by hand, because it is what a worker does most (ADR 0003).

Nothing here holds the GIL for long: numpy's loops, zlib and WebP let it go, JPEG is quick.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelkiln_shared import png
from pixelkiln_worker.families.contract import Pixels

_JPEG_QUALITY = 92
_WEBP_QUALITY = 90
_PREVIEW_QUALITY = 60
_WEBP_EFFORT = 2  # of 6; above, time doubles for a few per cent of size


def preview_of(pixels: Pixels, *, side_px: int) -> bytes:
    """Return a small WebP of HWC uint8 RGB pixels, at most `side_px` a side, for a glance."""
    image = Image.fromarray(pixels)
    image.thumbnail((side_px, side_px))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_PREVIEW_QUALITY, method=_WEBP_EFFORT)
    return file.getvalue()


def png_of(pixels: Pixels, *, chunks: Sequence[png.Chunk] = ()) -> bytes:
    """Return a PNG of HWC uint8 pixels, RGB or RGBA; every value survives."""
    height, width, channels = pixels.shape
    colour_type = {3: png.RGB, 4: png.RGBA}[channels]
    rows = _up_filtered(pixels.reshape(height, width * channels))
    return png.png_file(width, height, colour_type, [rows.data], chunks=chunks)


def png_of_ids(ids: NDArray[np.integer]) -> bytes:
    """Return a PNG of an HW map of numbers from 0.

    Up to 255: mode P with the PASCAL VOC colours, so one file is a label map and a coloured picture.
    Beyond: 16-bit grey, the number itself.
    """
    if int(ids.max(initial=0)) <= 255:
        height, width = ids.shape
        rows = _up_filtered(ids.astype(np.uint8))
        palette = (b"PLTE", voc_colours().tobytes())
        return png.png_file(width, height, png.PALETTE, [rows.data], chunks=[palette], flat=True)
    return png_of_grey(ids.astype(np.uint16), flat=True)


def png_of_grey(values: NDArray[np.uint8] | NDArray[np.uint16], *, flat: bool = False) -> bytes:
    """Return a grey PNG of HW values, 8 or 16 bits deep as they are; `flat` for large areas of one value."""
    height, width = values.shape
    depth = 8 * values.itemsize
    samples = values.astype(f">u{values.itemsize}").view(np.uint8).reshape(height, -1)
    return png.png_file(width, height, png.GREY, [_up_filtered(samples).data], depth=depth, flat=flat)


def webp_of(pixels: Pixels, *, exif: bytes = b"", xmp: bytes = b"", quality: int = _WEBP_QUALITY) -> bytes:
    """Return a lossy WebP of HWC uint8 pixels, RGB or RGBA."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=_WEBP_EFFORT, exif=exif, xmp=xmp)
    return file.getvalue()


def jpeg_of(pixels: Pixels, *, exif: bytes = b"", xmp: bytes = b"") -> bytes:
    """Return a JPEG of HWC uint8 pixels; transparency is laid on white."""
    if pixels.shape[2] == 4:
        pixels = flattened(pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0, exif=exif, xmp=xmp)
    return file.getvalue()


def flattened(pixels: Pixels) -> Pixels:
    """Return RGBA pixels as RGB on white."""
    alpha = pixels[..., 3:].astype(np.uint16)
    mixed = (pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)


@cache
def voc_colours() -> Pixels:
    """Return the 256 RGB colours of the PASCAL VOC masks, (256, 3): 1 is (128, 0, 0), 2 is (0, 128, 0)."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):  # bit 3k + c of a number is bit 7 - k of its channel c
        colours[:, bit % 3] |= ((numbers >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours


def _up_filtered(samples: Pixels) -> Pixels:
    """Return HW samples as PNG rows: the filter type, then each sample less the one above it."""
    height, width = samples.shape
    rows = np.empty((height, 1 + width), np.uint8)
    rows[:, 0] = png.UP
    rows[0, 1:] = samples[0]
    np.subtract(samples[1:], samples[:-1], out=rows[1:, 1:])
    return rows
