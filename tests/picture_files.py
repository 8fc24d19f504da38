"""Picture files to test with, and what to compare them by."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from pixelkiln_shared import png
from pixelkiln_shared.errors import InvalidImage
from pixelkiln_shared.pictures import CheckedPicture, PictureLimits, open_picture

LIMITS = PictureLimits()
WIDTH, HEIGHT = 48, 32


def photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture with no symmetry: red grows to the right, green downwards, a blue square at the top left."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(20, 235, width)
    pixels[..., 1] = np.linspace(20, 235, height)[:, None]
    pixels[: height // 3, : width // 3] = (0, 0, 255)
    return Image.fromarray(pixels)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def raw_png(
    width: int, height: int, rows: bytes, *, colour: int = 2, depth: int = 8, interlace: int = 0
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return png.SIGNATURE + b"".join(png.packed_chunk(*chunk) for chunk in chunks)


def code_of(data: bytes, limits: PictureLimits = LIMITS) -> str:
    with pytest.raises(InvalidImage) as caught:
        open_picture(data, limits)
    return caught.value.code


def pixels_of(picture: CheckedPicture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB"))


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found.astype(int) - wanted.astype(int)).mean())


def swapped_profile() -> io.BytesIO:
    """sRGB with the primaries of red and blue exchanged: a picture in it has red where its file says blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ", 128), profile.index(b"bXYZ", 128)
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    profile = bytearray(bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")))
    return io.BytesIO(bytes(profile).replace(b"sRGB", b"swap"))
