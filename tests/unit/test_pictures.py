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
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from pixelkiln_shared import png
from pixelkiln_shared.errors import InvalidImage
from pixelkiln_shared.pictures import CheckedPicture, PictureLimits, decode, open_picture

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


def test_the_same_bytes_give_the_same_picture() -> None:
    data = saved(photo().convert("RGBA"), "PNG")

    assert open_picture(data, LIMITS) == open_picture(data, LIMITS)


def test_decoded_pixels_may_be_written_to() -> None:
    pixels = decode(saved(photo(), "PNG"))

    pixels[0, 0] = 7
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (HEIGHT, WIDTH, 3), True)


def test_content_decides_not_the_name() -> None:
    assert open_picture(saved(photo(), "PNG"), LIMITS).media_type == "image/png"
    assert code_of(saved(photo(), "PNG"), PictureLimits(formats=("JPEG",))) == "invalid_image"


# ------------------------------------------------------------------------------------------------ sizes


def test_a_bomb_is_refused_by_its_header() -> None:
    """13300 x 13300 in 21 kB: refused in under a second, in a process that stays small."""
    script = (
        "import sys, time, resource; from pixelkiln_shared.pictures import *;"
        "from pixelkiln_shared.errors import InvalidImage\n"
        "data = sys.stdin.buffer.read(); began = time.process_time()\n"
        "try: open_picture(data, PictureLimits())\n"
        "except InvalidImage as error: code = error.code\n"
        "print(code, time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
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
        "import sys, resource; from pixelkiln_shared.pictures import *\n"
        "print(open_picture(sys.stdin.buffer.read(), PictureLimits()).height);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
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
    whole = saved(
        photo(), form, exif=exif, icc_profile=ImageCms.ImageCmsProfile(_swapped_profile()).tobytes()
    )
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


def _swapped_profile() -> io.BytesIO:
    """sRGB with the primaries of red and blue exchanged: a picture in it has red where its file says blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ", 128), profile.index(b"bXYZ", 128)
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    profile = bytearray(bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")))
    return io.BytesIO(bytes(profile).replace(b"sRGB", b"swap"))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_colour_profile_is_applied_and_dropped(form: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    profile = _swapped_profile().getvalue()
    options = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}[form]
    data = saved(image, form, icc_profile=profile, **options)

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
    options = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}[form]
    data = saved(stored, form, exif=exif, **options)

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
