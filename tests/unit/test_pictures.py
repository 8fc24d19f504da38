"""Pictures from outside, good and evil: the rows B53 to B66 of the bad-input matrix, and inputs like them."""

from __future__ import annotations

import hashlib
import io
import random
import resource
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from pixelkiln_shared import png
from pixelkiln_shared.errors import InvalidImage
from pixelkiln_shared.pictures import PictureLimits, decode, open_picture, open_transparency
from tests.picture_files import (
    HEIGHT,
    LIMITS,
    WIDTH,
    code_of,
    photo,
    pixels_of,
    raw_png,
    saved,
    swapped_profile,
)

# The peak of just this process, in KiB: what `getrusage` says begins with the peak of who forked it.
PRINT_PEAK = "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"

# ------------------------------------------------------------------------------------------------ plain


@pytest.mark.parametrize(
    ("form", "media_type", "options"),
    [
        ("PNG", "image/png", {}),
        ("JPEG", "image/jpeg", {"quality": 95, "subsampling": 0}),
        ("JPEG", "image/jpeg", {"progressive": True, "quality": 95, "subsampling": 0}),
        ("JPEG", "image/jpeg", {"restart_marker_rows": 1, "quality": 95, "subsampling": 0}),
        ("WEBP", "image/webp", {"lossless": True}),
        ("WEBP", "image/webp", {"quality": 95}),
    ],
)
def test_a_plain_picture_keeps_its_pixels(form: str, media_type: str, options: dict[str, object]) -> None:
    data = saved(photo(), form, **options)

    picture = open_picture(data, LIMITS)

    assert (picture.width, picture.height, picture.media_type) == (WIDTH, HEIGHT, media_type)
    assert np.array_equal(pixels_of(picture), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert picture.sha256 == hashlib.sha256(picture.data).hexdigest()
    assert np.array_equal(decode(picture.data), pixels_of(picture))


def test_what_is_transparent_is_white_in_a_mask_whatever_its_colour() -> None:
    marked = photo().convert("RGBA")
    marked.paste((9, 9, 9, 0), (0, 0, 10, 20))
    marked.paste((250, 250, 250, 64), (20, 0, 30, 20))

    mask = open_transparency(saved(marked, "PNG"), LIMITS)

    assert (mask.width, mask.height, mask.media_type) == (WIDTH, HEIGHT, "image/png")
    assert mask.sha256 == hashlib.sha256(mask.data).hexdigest()
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:20, :10] = 255
    expected[:20, 20:30] = 255 - 64
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(mask.data))), expected)


def test_a_turned_mask_is_turned_upright() -> None:
    marked = Image.new("RGBA", (WIDTH, HEIGHT), "black")
    marked.paste((0, 0, 0, 0), (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # stands on its left side
    mask = open_transparency(saved(marked, "PNG", exif=exif), LIMITS)
    assert (mask.width, mask.height) == (HEIGHT, WIDTH)
    assert Image.open(io.BytesIO(mask.data)).getbbox() == (HEIGHT - 20, 0, HEIGHT, 10)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_mask_that_is_opaque_everywhere_is_refused(mode: str) -> None:
    with pytest.raises(InvalidImage, match="opaque everywhere"):
        open_transparency(saved(Image.new(mode, (WIDTH, HEIGHT), "white"), "PNG"), LIMITS)


def test_the_same_bytes_give_the_same_picture() -> None:
    data = saved(photo().convert("RGBA"), "PNG")

    assert open_picture(data, LIMITS) == open_picture(data, LIMITS)


def test_decoded_pixels_may_be_written_to() -> None:
    pixels = decode(saved(photo(), "PNG"))

    pixels[0, 0] = 7
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (
        np.dtype(np.uint8),
        (HEIGHT, WIDTH, 3),
        True,
    )


def test_content_decides_not_the_name() -> None:
    assert open_picture(saved(photo(), "PNG"), LIMITS).media_type == "image/png"
    assert code_of(saved(photo(), "PNG"), PictureLimits(formats=("JPEG",))) == "invalid_image"


# ------------------------------------------------------------------------------------------------ sizes


def test_a_bomb_is_refused_by_its_header() -> None:
    """13300 x 13300 in 21 kB: refused in under a second, in a process that stays small."""
    script = (
        "import sys, time; from pixelkiln_shared.pictures import *;"
        "from pixelkiln_shared.errors import InvalidImage\n"
        "data = sys.stdin.buffer.read(); began = time.process_time()\n"
        "try: open_picture(data, PictureLimits())\n"
        "except InvalidImage as error: code = error.code\n"
        "print(code, time.process_time() - began)\n" + PRINT_PEAK
    )
    bomb = raw_png(13_300, 13_300, bytes((1 + 13_300 // 8 + 1) * 13_300), colour=0, depth=1)
    assert len(bomb) < 30_000

    done = subprocess.run([sys.executable, "-c", script], input=bomb, capture_output=True, check=True)

    code, seconds, peak_kib = done.stdout.decode().split()
    assert code == "image_too_large"
    assert float(seconds) < 1
    assert int(peak_kib) < 300 * 1024


@pytest.mark.parametrize(
    ("width", "height"),
    [(30_000, 30_000), (13_300, 13_300), (8_193, 8), (8, 8_193), (6_000, 6_000), (2**31 - 1, 1)],
)
def test_too_many_pixels_are_refused_undecoded(width: int, height: int) -> None:
    assert code_of(raw_png(width, height, b"not the rows")) == "image_too_large"


def test_a_jpeg_of_nothing_but_fill_bytes_takes_no_time() -> None:
    jpeg = saved(photo(), "JPEG")
    began = time.monotonic()
    assert code_of(jpeg[: jpeg.index(b"\xff\xda") + 14] + b"\xff" * 400_000 + b"\0") == "invalid_image"
    assert time.monotonic() - began < 5  # looked for at every place, a marker would take a quarter of an hour


def test_jpeg_and_webp_bombs_are_refused_undecoded() -> None:
    jpeg = bytearray(saved(photo(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    webp = saved(Image.new("RGB", (8_200, 8)), "WEBP", lossless=True)

    assert code_of(bytes(jpeg)) == "image_too_large"
    assert code_of(webp) == "image_too_large"


def test_too_many_bytes_are_refused() -> None:
    data = saved(photo(), "PNG")

    assert code_of(data, PictureLimits(max_bytes=len(data) - 1)) == "image_too_large"
    assert open_picture(data, PictureLimits(max_bytes=len(data))).width == WIDTH


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 100), (100, 7)])
def test_a_tiny_picture_is_refused(width: int, height: int) -> None:
    assert code_of(saved(photo(width, height), "PNG")) == "image_too_small"


def test_limits_are_inclusive() -> None:
    assert open_picture(saved(photo(8, 8), "PNG"), LIMITS).width == 8
    assert open_picture(saved(Image.new("RGB", (8_192, 8)), "PNG"), LIMITS).width == 8_192


def test_the_refusal_tells_the_limits() -> None:
    with pytest.raises(InvalidImage, match="32,000,000 pixels") as caught:
        open_picture(raw_png(6_000, 6_000, b""), LIMITS)
    assert caught.value.detail["max_pixels"] == 32_000_000


def test_a_big_picture_is_opened_in_little_memory() -> None:
    """24 megapixels with transparency: converted in bands, never four times in memory."""
    script = (
        "import sys; from pixelkiln_shared.pictures import *\n"
        "print(open_picture(sys.stdin.buffer.read(), PictureLimits()).height);" + PRINT_PEAK
    )
    image = Image.linear_gradient("L").resize((6_000, 4_000))
    data = saved(Image.merge("RGBA", [image] * 4), "PNG", compress_level=1)

    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)

    height, peak_kib = done.stdout.split()
    assert int(height) == 4_000
    assert int(peak_kib) < 300 * 1024


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_picture_is_refused(form: str, part: float) -> None:
    data = saved(photo(200, 150), form)

    assert code_of(data[: int(len(data) * part)]) == "invalid_image"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_without_its_last_byte_is_refused(form: str) -> None:
    assert code_of(saved(photo(), form)[:-1]) == "invalid_image"


@pytest.mark.parametrize("interlace", [0, 1])
def test_rows_that_never_come_are_noticed(interlace: int) -> None:
    rows = (b"\0" + bytes([200]) * 24) * 4  # of 8

    assert code_of(raw_png(8, 8, rows, interlace=interlace)) == "invalid_image"


def test_a_black_bottom_row_is_no_damage() -> None:
    image = photo()
    image.paste((0, 0, 0), (0, HEIGHT - 4, WIDTH, HEIGHT))

    assert open_picture(saved(image, "PNG"), LIMITS).height == HEIGHT


def test_a_wrong_checksum_is_refused() -> None:
    data = bytearray(saved(photo(), "PNG"))
    data[data.index(b"IEND") - 8] ^= 1  # the last byte but four: the CRC of the pixels

    assert code_of(bytes(data)) == "invalid_image"


def test_a_flipped_pixel_byte_is_refused() -> None:
    data = bytearray(saved(photo(), "PNG"))
    data[data.index(b"IDAT") + 40] ^= 1

    assert code_of(bytes(data)) == "invalid_image"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello, this is text",
        b"<!doctype html><html><body><svg></svg></body></html>",
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
        random.Random(7).randbytes(5_000),
        png.SIGNATURE,
        png.SIGNATURE + bytes(200),
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(50),
        b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20),
        b'{"not": "a picture"}',
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert code_of(data) == "invalid_image"


@pytest.mark.parametrize(
    "form", ["GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "PDF", "EPS", "JPEG2000", "AVIF"]
)
def test_other_formats_are_refused(form: str) -> None:
    known = {"PPM": "invalid_image", "TGA": "invalid_image"}

    assert code_of(saved(photo(), form)) == known.get(form, "unsupported_format")


@pytest.mark.parametrize(
    "start",
    [
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%id) (w) file",
        b"8BPS\0\1" + bytes(100),
        b"SIMPLE  =                    T",
        b"\0\0\0\x18ftypheic" + bytes(100),
        b"\0\0\0\x1cftypavif" + bytes(100),
        b"\0\0\0\x0cJXL \r\n\x87\n",
        b"\0\0\0\x18ftypmp42" + bytes(100),
        b"qoif" + bytes(100),
    ],
)
def test_known_other_formats_are_named(start: bytes) -> None:
    with pytest.raises(InvalidImage, match="not accepted; send PNG, JPEG, WEBP") as caught:
        open_picture(start, LIMITS)
    assert caught.value.code == "unsupported_format"


def test_animations_are_refused() -> None:
    frames = [Image.new("RGB", (16, 16), (value, 0, 0)) for value in range(0, 250, 25)]

    for form in ("PNG", "WEBP"):
        assert code_of(saved(frames[0], form, save_all=True, append_images=frames[1:])) == "animated_image"


def test_ten_thousand_promised_frames_are_refused_quickly() -> None:
    data = saved(photo(), "PNG")
    control = png.packed_chunk(b"acTL", struct.pack(">II", 10_000, 0))
    began = time.process_time()

    assert code_of(data[:33] + control + data[33:]) == "animated_image"
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_are_refused_or_opened_never_worse(form: str) -> None:
    """400 files with random damage: each is either a picture or an InvalidImage."""
    chance = random.Random(f"damage {form}")
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(photo(), form, exif=exif, icc_profile=ImageCms.ImageCmsProfile(swapped_profile()).tobytes())
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 3, 10])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.2:
            at = chance.randrange(len(data))
            data[at:at] = chance.randbytes(chance.randrange(20))
        try:
            picture = open_picture(bytes(data), LIMITS)
        except InvalidImage:
            continue
        else:
            assert decode(picture.data).shape == (picture.height, picture.width, 3)


def test_a_text_bomb_in_a_png_is_harmless() -> None:
    data = saved(photo(), "PNG")
    bomb = png.packed_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(InvalidImage):
        open_picture(data[:33] + bomb + data[33:], LIMITS)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


# ------------------------------------------------------------------------------------------------ time


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_usual_photograph_takes_less_than_a_second(form: str) -> None:
    noise = np.random.default_rng(3).normal(0, 6, (1_500, 2_000, 3))
    image = Image.fromarray((np.asarray(photo(2_000, 1_500)) + noise).clip(0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(image, form, exif=exif, **({"compress_level": 1} if form == "PNG" else {}))
    began = time.process_time()

    open_picture(data, LIMITS)

    assert time.process_time() - began < 1
