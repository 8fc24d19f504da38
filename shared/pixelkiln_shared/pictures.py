"""Pictures from outside: opened with suspicion, handed on upright, opaque, sRGB, eight bits a channel, bare.

A picture that is so already keeps its encoded pixels and only loses its metadata; any other is converted
and encoded anew (JPEG at quality 95 when it was one, else PNG). The conversions:

- transparency is laid on white;
- 16-bit samples keep their upper byte;
- a colour profile is applied and dropped (a damaged one is ignored); CMYK without one is inverted plainly;
- palette, grey and one-bit pictures become RGB when decoded;
- EXIF orientation is applied, and every piece of metadata is dropped.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageCms, UnidentifiedImageError, features

from pixelkiln_shared import containers, png
from pixelkiln_shared.errors import InvalidImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A header that promises more pixels than Pillow thinks sane is an attack, whoever asks. Once for the process:
# `warnings.catch_warnings` would race between threads.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_PROFILE_BYTES = 4_000_000
_BAND_ROWS = 128  # converted at a time: a big picture is in memory once, not four times

_KNOWN_FORMATS = (
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (0, b"v/1\1", "OpenEXR"),
    (0, b"#?RADIANCE", "HDR"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftyp", "video"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureLimits:
    """What is let in. Sides are those in the file, before the picture is turned upright."""

    max_bytes: int = 20_000_000
    max_pixels: int = 32_000_000
    max_side_px: int = 8_192
    min_side_px: int = 8
    formats: tuple[str, ...] = ("PNG", "JPEG", "WEBP")


# For pictures that we stored ourselves.
OURS = PictureLimits(max_bytes=1 << 31, max_pixels=1 << 26, min_side_px=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedPicture:
    """A picture that was decoded once without complaint.

    Attributes:
        data: a PNG, JPEG or WebP file: upright, opaque, sRGB, eight bits a channel, no metadata.
        media_type: of `data`.
        width: pixels, upright.
        height: pixels, upright.
        sha256: of `data`.
    """

    data: bytes
    media_type: str
    width: int
    height: int
    sha256: str


def open_picture(data: bytes, limits: PictureLimits) -> CheckedPicture:
    """Check an untrusted file and return it normalised; its size is judged before anything is decoded.

    Raises:
        InvalidImage: `invalid_image` (no picture, cut short, damaged), `unsupported_format`,
            `image_too_large`, `image_too_small` or `animated_image`.
    """
    image = _opened(data, limits)
    try:
        bare = _bare(image, data)
        turn = _UPRIGHT.get(_orientation(image, data))
        if turn is None and _is_plain(image, data):
            kept, size = bare, image.size
            _decoded(Image.open(io.BytesIO(bare), formats=limits.formats), bare)
            media_type = _MEDIA_TYPES[_format(image)]
        else:
            _decoded(image, data)
            profile = _to_srgb(image)
            image = image if turn is None else _turned(image, turn)
            size = image.size
            kept, media_type = _encoded_anew(image, profile)
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # damaged files make decoders raise almost anything
        _unless_memory_is_short(error)
        raise InvalidImage(f"the picture is damaged: {_reason(error)}") from error
    return CheckedPicture(
        data=kept,
        media_type=media_type,
        width=size[0],
        height=size[1],
        sha256=hashlib.sha256(kept).hexdigest(),
    )


def open_transparency(data: bytes, limits: PictureLimits) -> CheckedPicture:
    """Check an untrusted file and return where it is transparent, as a grey picture: white there, else black.

    Raises:
        InvalidImage: as `open_picture`, and when it is opaque everywhere.
    """
    open_picture(data, limits)
    image = _opened(data, limits)
    clear = ImageChops.invert(image.convert("RGBA").getchannel("A"))
    if clear.getextrema() == (0, 0):
        raise InvalidImage("the mask is opaque everywhere; it marks by transparency what is drawn anew")
    turn = _UPRIGHT.get(_orientation(image, data))
    clear = clear if turn is None else clear.transpose(turn)
    file = io.BytesIO()
    clear.save(file, "PNG")
    kept = file.getvalue()
    return CheckedPicture(
        data=kept,
        media_type="image/png",
        width=clear.width,
        height=clear.height,
        sha256=hashlib.sha256(kept).hexdigest(),
    )


def decode(data: bytes, limits: PictureLimits = OURS) -> NDArray[np.uint8]:
    """Return the pixels of a stored picture: HWC, RGB, uint8, upright, transparency laid on white.

    Needs numpy, which only workers have.

    Raises:
        InvalidImage: as `open_picture`.
    """
    import numpy as np

    image = _opened(data, limits)
    try:
        turn, profile = _UPRIGHT.get(_orientation(image, data)), _to_srgb(image)
        _decoded(image, data)
        pixels = np.array(_rgb(image if turn is None else _turned(image, turn), profile))
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # damaged files make decoders raise almost anything
        _unless_memory_is_short(error)
        raise InvalidImage(f"the picture is damaged: {_reason(error)}") from error
    return pixels


# ------------------------------------------------------------------------------------------------ the door


def _unless_memory_is_short(error: Exception) -> None:
    """Raise MemoryError where a decoder's own words say that it got none: the file is not to blame."""
    text = str(error).lower()
    if "out of memory" in text or "allocate memory" in text:
        raise MemoryError(str(error)) from error


def _opened(data: bytes, limits: PictureLimits) -> Image.Image:
    """Read the header and judge it; no pixel is decoded."""
    if not data:
        raise InvalidImage("the file is empty")
    if len(data) > limits.max_bytes:
        raise _too_large(f"has {len(data):,} bytes", limits)
    try:
        image = Image.open(io.BytesIO(data), formats=limits.formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("has far too many pixels", limits) from error
    except UnidentifiedImageError as error:
        raise _unknown(data, limits) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged headers make decoders raise almost anything
        raise InvalidImage(f"the picture's header is damaged: {_reason(error)}") from error
    _judge(image, limits)
    return image


def _judge(image: Image.Image, limits: PictureLimits) -> None:
    width, height = image.size
    if max(width, height) > limits.max_side_px or width * height > limits.max_pixels:
        raise _too_large(f"is {width} x {height} pixels", limits)
    if min(width, height) < limits.min_side_px:
        raise InvalidImage(
            f"the picture is {width} x {height} pixels; each side needs at least {limits.min_side_px}",
            code="image_too_small",
            detail={"min_side_px": limits.min_side_px},
        )
    # A JPEG of several pictures (MPO: depth, stereo, preview) is a photograph; its first one counts.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InvalidImage("the picture is animated; send one frame", code="animated_image")


def _too_large(what: str, limits: PictureLimits) -> InvalidImage:
    facts = {
        "max_bytes": limits.max_bytes,
        "max_pixels": limits.max_pixels,
        "max_side_px": limits.max_side_px,
    }
    most = (
        f"{limits.max_bytes:,} bytes, {limits.max_pixels:,} pixels and sides of {limits.max_side_px:,} pixels"
    )
    return InvalidImage(
        f"the picture {what}; at most {most} are accepted", code="image_too_large", detail=facts
    )


def _unknown(data: bytes, limits: PictureLimits) -> InvalidImage:
    found = next((name for at, mark, name in _KNOWN_FORMATS if data.startswith(mark, at)), None)
    start = data[:1024].lower()
    if b"<svg" in start and b"<html" not in start:
        found = "SVG"
    wanted = ", ".join(limits.formats)
    if found:
        return InvalidImage(f"{found} files are not accepted; send {wanted}", code="unsupported_format")
    return InvalidImage(f"this is no picture that we open; send {wanted}")


def _reason(error: Exception) -> str:
    return (
        str(error) if isinstance(error, (containers.Broken, OSError)) and str(error) else "it does not decode"
    )


# ------------------------------------------------------------------------------------------------ reading


def _format(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else str(image.format)


def _bare(image: Image.Image, data: bytes) -> bytes:
    strip = {
        "PNG": containers.stripped_png,
        "JPEG": containers.stripped_jpeg,
        "WEBP": containers.stripped_webp,
    }
    return strip[_format(image)](data)


def _decoded(image: Image.Image, data: bytes) -> None:
    image.load()
    if image.format == "PNG":
        width, height = image.size
        last = image.crop((0, height - 1, width, height)).tobytes()
        # A row that never came is all zeros. Only then, or in an interlaced file, is counting worth its time.
        if (containers.png_interlaced(data) or not any(last)) and containers.png_is_short(data):
            raise containers.Broken("the picture ends before its last row")


def _orientation(image: Image.Image, data: bytes) -> int:
    try:
        if image.format == "PNG":
            exif = Image.Exif()
            exif.load(containers.png_exif(data))
        else:
            exif = image.getexif()
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF does not make a damaged picture
        return 1


def _turned(image: Image.Image, turn: Image.Transpose) -> Image.Image:
    upright = image.transpose(turn)
    upright.format = image.format
    return upright


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether the pixels can stay as they are encoded."""
    if image.has_transparency_data or image.mode not in ("1", "L", "P", "RGB"):
        return False
    if image.format == "PNG" and containers.png_depth(data) > 8:
        return False
    return _to_srgb(image) is None


def _to_srgb(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """Return what takes the picture's colours to sRGB; None when they are, or the profile is of no use."""
    packed = image.info.get("icc_profile")
    if not packed or len(packed) > _MAX_PROFILE_BYTES or not features.check("littlecms2"):
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(packed))
        space = profile.profile.xcolor_space.strip()
        working = {"L": "GRAY", "1": "GRAY", "I;16": "GRAY", "CMYK": "CMYK"}.get(image.mode, "RGB")
        if space != working or (space == "RGB" and "sRGB" in (profile.profile.profile_description or "")):
            return None
        mode = {"GRAY": "L"}.get(space, space)
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None


# ------------------------------------------------------------------------------------------------ converting


def _rgb(image: Image.Image, profile: ImageCms.ImageCmsTransform | None) -> Image.Image:
    """Return the picture (or a band of it) as RGB in sRGB, transparency laid on white."""
    alpha = None
    if image.mode.startswith("I;16"):
        upper = slice(0, None, 2) if image.mode.endswith("B") else slice(1, None, 2)
        image = Image.frombytes("L", image.size, image.tobytes()[upper])
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "P":
        image = image.convert("RGB")
    if profile is not None:
        image = ImageCms.applyTransform(image, profile) or image
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is None:
        return image
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=alpha)
    return page


def _encoded_anew(image: Image.Image, profile: ImageCms.ImageCmsTransform | None) -> tuple[bytes, str]:
    if _format(image) == "JPEG":
        file, page = io.BytesIO(), _rgb(image, profile)
        page.info = {}  # else Pillow writes the comment, and what else it found, into the new file
        page.save(file, "JPEG", quality=95, subsampling=0)
        return file.getvalue(), "image/jpeg"
    width, height = image.size
    return png.png_file(width, height, png.RGB, _filtered_bands(image, profile)), "image/png"


def _filtered_bands(image: Image.Image, profile: ImageCms.ImageCmsTransform | None) -> Iterator[bytes]:
    """Yield the rows as PNG's Up filter leaves them, some at a time, with nothing but Pillow."""
    width, height = image.size
    above = Image.new("L", (3 * width, 1))
    for top in range(0, height, _BAND_ROWS):
        band = _rgb(image.crop((0, top, width, min(top + _BAND_ROWS, height))), profile)
        samples = Image.frombytes("L", (3 * width, band.height), band.tobytes())
        shifted = Image.new("L", samples.size)
        shifted.paste(above, (0, 0))
        shifted.paste(samples, (0, 1))
        rows = Image.new("L", (3 * width + 1, band.height), png.UP)
        rows.paste(ImageChops.subtract_modulo(samples, shifted), (1, 0))
        yield rows.tobytes()
        above = samples.crop((0, band.height - 1, 3 * width, band.height))
