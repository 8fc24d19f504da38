"""A picture that looks like a photograph and is nobody's: a red ball, a blue mug and a lemon on a table.

Drawn here so that the demo needs no file and no licence: shading, soft shadows, wood, vignette, film grain.
"""

from __future__ import annotations

from PIL import Image, ImageChops, ImageDraw, ImageFilter

WIDTH, HEIGHT = 480, 360
MUG_BOX = (246, 92, 404, 292)
"""A box around the mug, XYXY pixels: what a user would drag."""

_SCALE = 2  # drawn twice as large and shrunk: smooth edges
Colour = tuple[int, int, int]


def still_life() -> Image.Image:
    """Return the picture, RGB, 480 x 360; the same one at every call but for its grain."""
    size = (WIDTH * _SCALE, HEIGHT * _SCALE)
    picture = _room(size)
    for box in ((70, 268, 236, 312), (236, 262, 430, 306), (170, 292, 300, 328)):
        picture = _shadow(picture, box)
    picture = _ball(picture, (78, 142, 222, 286), (186, 38, 34))
    picture = _mug(picture)
    picture = _ball(picture, (182, 244, 282, 316), (226, 188, 44))
    picture = picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return _film(picture)


def _scaled(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (value * _SCALE for value in box)
    return x0, y0, x1, y1


def _room(size: tuple[int, int]) -> Image.Image:
    width, height = size
    light = (
        Image.radial_gradient("L")
        .resize((width * 2, height * 2))
        .crop((width // 2, height // 4, width * 3 // 2, height * 5 // 4))
    )
    wall = Image.composite(
        Image.new("RGB", size, (96, 104, 100)), Image.new("RGB", size, (196, 198, 186)), light
    )
    grain = Image.effect_noise((width // 24, height), 48).resize(size, Image.Resampling.BICUBIC)
    grain = grain.filter(ImageFilter.GaussianBlur(1.2))
    wood = Image.composite(
        Image.new("RGB", size, (122, 78, 46)), Image.new("RGB", size, (158, 108, 66)), grain
    )
    edge = Image.new("L", size, 0)
    ImageDraw.Draw(edge).rectangle((0, height * 3 // 5, width, height), fill=255)
    return Image.composite(wood, wall, edge.filter(ImageFilter.GaussianBlur(1.5)))


def _shadow(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).ellipse(_scaled(box), fill=150)
    mask = mask.filter(ImageFilter.GaussianBlur(16))
    return Image.composite(Image.new("RGB", picture.size, (34, 20, 12)), picture, mask)


def _ball(picture: Image.Image, box: tuple[int, int, int, int], colour: Colour) -> Image.Image:
    """Put a lit ellipsoid into the picture; the light comes from the upper left."""
    x0, y0, x1, y1 = _scaled(box)
    width, height = x1 - x0, y1 - y0
    distance = Image.radial_gradient("L").resize((width * 2, height * 2), Image.Resampling.BICUBIC)
    shade = distance.crop((width * 5 // 8, height * 5 // 8, width * 13 // 8, height * 13 // 8))
    dark = tuple(value // 5 for value in colour)
    lit = Image.composite(
        Image.new("RGB", shade.size, dark),
        Image.new("RGB", shade.size, colour),
        shade.point(lambda v: min(255, int(v * 1.5))),
    )
    glint = Image.new("L", shade.size, 0)
    ImageDraw.Draw(glint).ellipse((width * 0.24, height * 0.16, width * 0.44, height * 0.32), fill=190)
    lit.paste((255, 250, 240), mask=glint.filter(ImageFilter.GaussianBlur(width / 26)))
    outline = Image.new("L", shade.size, 0)
    ImageDraw.Draw(outline).ellipse((0, 0, width - 1, height - 1), fill=255)
    picture.paste(lit, (x0, y0), outline)
    return picture


def _mug(picture: Image.Image) -> Image.Image:
    blue, deep = (52, 98, 158), (14, 30, 58)
    draw = ImageDraw.Draw(picture)
    draw.ellipse(_scaled((352, 142, 400, 236)), outline=(38, 74, 124), width=13 * _SCALE)
    x0, y0, x1, y1 = _scaled((254, 116, 366, 284))
    width, height = x1 - x0, y1 - y0
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    fold = across.point(lambda v: min(255, int(abs(v - 84) * 1.45)))  # lightest a third of the way across
    side = Image.composite(Image.new("RGB", fold.size, deep), Image.new("RGB", fold.size, blue), fold)
    outline = Image.new("L", fold.size, 0)
    pen = ImageDraw.Draw(outline)
    lip = 14 * _SCALE
    pen.rectangle((0, lip, width, height - lip), fill=255)
    pen.ellipse((0, 0, width - 1, 2 * lip), fill=255)
    pen.ellipse((0, height - 2 * lip, width - 1, height - 1), fill=255)
    picture.paste(side, (x0, y0), outline)
    draw.ellipse((x0, y0, x1, y0 + 2 * lip), fill=(120, 158, 204))
    draw.ellipse((x0 + 10, y0 + 7, x1 - 10, y0 + 2 * lip - 5), fill=(20, 28, 44))
    return picture


def _film(picture: Image.Image) -> Image.Image:
    vignette = Image.radial_gradient("L").resize(picture.size).point(lambda v: max(0, v - 110) // 2)
    picture = Image.composite(Image.new("RGB", picture.size, (10, 10, 14)), picture, vignette)
    grain = Image.effect_noise(picture.size, 6).convert("RGB")
    return ImageChops.add(picture, grain, offset=-128).filter(ImageFilter.GaussianBlur(0.5))
