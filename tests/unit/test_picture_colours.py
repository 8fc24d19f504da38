"""Pictures from outside become upright, opaque, sRGB and bare: rows B63 to B66 of the bad-input matrix."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from pixelkiln_shared import png
from pixelkiln_shared.pictures import decode, open_picture
from tests.picture_files import (
    HEIGHT,
    LIMITS,
    WIDTH,
    distance,
    photo,
    pixels_of,
    raw_png,
    saved,
    swapped_profile,
)

FAITHFUL: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
"""How each format is saved so that its colours stay."""

# ------------------------------------------------------------------------------------------------ colours


def test_transparency_is_laid_on_white() -> None:
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    wanted = Image.new("RGBA", image.size, "white")
    wanted.alpha_composite(image)

    picture = open_picture(saved(image, "PNG"), LIMITS)

    assert distance(pixels_of(picture), np.asarray(wanted.convert("RGB"))) <= 1
    assert not Image.open(io.BytesIO(picture.data)).has_transparency_data
    assert np.array_equal(decode(saved(image, "PNG")), pixels_of(picture))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize(
    "convert",
    [
        lambda image: image.convert("RGBA"),
        lambda image: image.convert("L").convert("LA"),
        lambda image: image.convert("RGB").quantize(64),
        lambda image: image.convert("L"),
        lambda image: image.convert("1"),
    ],
)
def test_every_mode_becomes_rgb(form: str, convert: Callable[[Image.Image], Image.Image]) -> None:
    image = convert(photo())
    options = {"lossless": True} if form == "WEBP" else {}

    pixels = decode(open_picture(saved(image, form, **options), LIMITS).data)

    assert np.array_equal(pixels, np.asarray(image.convert("RGBA").convert("RGB")))


def test_a_transparent_palette_colour_becomes_white() -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (0, 0, 16, 8))

    pixels = decode(open_picture(saved(image, "PNG", transparency=0), LIMITS).data)

    assert pixels[0, 0].tolist() == [0, 255, 0]
    assert pixels[15, 0].tolist() == [255, 255, 255]


def test_a_transparent_colour_becomes_white() -> None:
    pixels = decode(open_picture(saved(photo(), "PNG", transparency=(0, 0, 255)), LIMITS).data)

    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[HEIGHT - 1, WIDTH - 1].tolist() == [235, 235, 0]


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_keep_the_upper_byte(colour: int, samples: int) -> None:
    values = np.full((16, 16, samples), 0x80FF, ">u2")
    values[8:] = 0x01FF
    if samples in (2, 4):
        values[..., -1] = 0xFFFF
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    picture = open_picture(raw_png(16, 16, rows, colour=colour, depth=16), LIMITS)

    assert picture.data[24] == 8
    pixels = decode(picture.data)
    assert set(pixels[0, 0].tolist()) <= {0x80, 0x81}
    assert set(pixels[15, 0].tolist()) <= {1, 2}


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_a_sample_span_black_to_white(depth: int) -> None:
    top = 2**depth - 1
    row = b"\0" + bytes([0xFF] * depth) + bytes(depth)  # 8 samples of the highest value, 8 of zero
    picture = open_picture(raw_png(16, 16, row * 16, colour=0, depth=depth), LIMITS)

    pixels = decode(picture.data)
    assert top
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 15].tolist() == [0, 0, 0]


def test_cmyk_has_its_colours() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    image.paste((255, 0, 255, 0), (0, 8, 16, 16))  # green

    picture = open_picture(saved(image, "JPEG", quality=95), LIMITS)

    pixels = decode(picture.data)
    assert Image.open(io.BytesIO(picture.data)).mode == "RGB"
    assert distance(pixels[2:6], np.full((4, 16, 3), (255, 0, 0))) < 6
    assert distance(pixels[10:14], np.full((4, 16, 3), (0, 255, 0))) < 6


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_colour_profile_is_applied_and_dropped(form: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    profile = swapped_profile().getvalue()
    data = saved(image, form, icc_profile=profile, **FAITHFUL[form])

    picture = open_picture(data, LIMITS)

    assert "icc_profile" not in Image.open(io.BytesIO(picture.data)).info
    assert distance(pixels_of(picture), np.full((16, 16, 3), (0, 0, 255))) < 4
    assert distance(decode(data), np.full((16, 16, 3), (0, 0, 255))) < 4


@pytest.mark.parametrize("profile", [b"", b"rubbish", bytes(200), b"\xff" * 5_000])
def test_a_damaged_colour_profile_is_ignored(profile: bytes) -> None:
    picture = open_picture(saved(photo(), "PNG", icc_profile=profile), LIMITS)

    assert np.array_equal(pixels_of(picture), np.asarray(photo()))


def test_an_srgb_profile_costs_no_second_encoding() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = saved(photo(), "JPEG")

    assert (
        open_picture(saved(photo(), "JPEG", icc_profile=profile), LIMITS).data
        == open_picture(plain, LIMITS).data
    )


# ------------------------------------------------------------------------------------------------ orientation

UNDO = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}
"""How a camera held that way stores the upright picture."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_orientation_is_applied(form: str, orientation: int) -> None:
    upright = np.asarray(photo())
    stored = Image.fromarray(np.ascontiguousarray(UNDO[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, form, exif=exif, **FAITHFUL[form])

    picture = open_picture(data, LIMITS)

    assert (picture.width, picture.height) == (WIDTH, HEIGHT)
    assert distance(pixels_of(picture), upright) < 4
    assert distance(decode(data), upright) < 4
    assert distance(decode(picture.data), upright) < 4


def test_orientation_behind_the_pixels_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(photo(), "PNG")
    late = png.packed_chunk(b"eXIf", exif.tobytes()[6:])

    picture = open_picture(data[:-12] + late + data[-12:], LIMITS)

    assert (picture.width, picture.height) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_unknown_orientation_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert open_picture(saved(photo(), "JPEG", exif=exif), LIMITS).width == WIDTH


# ------------------------------------------------------------------------------------------------ metadata


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turned", [False, True])
def test_metadata_is_stripped(form: str, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    exif[0x010F] = "SECRET-CAMERA"
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 14.0)
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0SECRET-COMMENT"
    options: dict[str, object] = {"exif": exif, "xmp": b"<x>SECRET-XMP</x>"}
    if form == "PNG":
        info = PngInfo()
        info.add_text("parameters", "SECRET-PROMPT")
        info.add_itxt("XML:com.adobe.xmp", "SECRET-XMP")
        options = {"exif": exif, "pnginfo": info}
    if form == "JPEG":
        options["comment"] = b"SECRET-COMMENT"
    data = saved(photo(), form, **options) + b"SECRET-TRAILER"
    assert b"SECRET" in data

    picture = open_picture(data, LIMITS)

    assert b"SECRET" not in picture.data
    opened = Image.open(io.BytesIO(picture.data))
    assert not opened.getexif()
    assert not set(opened.info) & {"exif", "xmp", "comment", "parameters", "icc_profile"}
    assert np.array_equal(decode(picture.data), pixels_of(picture))


def test_a_jpeg_thumbnail_is_stripped() -> None:
    data = saved(photo(), "JPEG")
    thumbnail = bytes([7, 7]) + b"SECRET" + bytes(7 * 7 * 3 - 6)
    head = b"\xff\xe0" + struct.pack(">H", 2 + 12 + len(thumbnail)) + data[6:18] + thumbnail

    picture = open_picture(data[:2] + head + data[20:], LIMITS)

    assert b"SECRET" not in picture.data
    assert np.array_equal(pixels_of(picture), np.asarray(Image.open(io.BytesIO(data))))


def test_a_photograph_of_several_pictures_gives_its_first() -> None:
    data = saved(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], quality=95)
    assert Image.open(io.BytesIO(data)).format == "MPO"

    picture = open_picture(data, LIMITS)

    assert picture.media_type == "image/jpeg"
    assert Image.open(io.BytesIO(picture.data)).format == "JPEG"
    assert distance(pixels_of(picture), np.asarray(photo())) < 8
