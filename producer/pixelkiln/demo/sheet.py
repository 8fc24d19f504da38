"""The contact sheet: for each picture a row of picture, masks, overlay and cut-out, with captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, MARGIN = 200, 8, 40
CAPTION, HEADER, FOOTER, ROW_GAP, BLOCK_GAP = 46, 120, 64, 22, 56
PAPER, INK, FAINT, EDGE = (250, 248, 244), (38, 36, 34), (136, 130, 122), (226, 221, 212)
COLUMNS = ("picture", "masks", "overlay", "cut-out")
BLOCKS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """One picture and what was found in it; `cutout` has transparency."""

    title: str
    note: str
    picture: Image.Image
    masks: Image.Image | None
    overlay: Image.Image | None
    cutout: Image.Image | None


def contact_sheet(
    strips: Sequence[Strip], extras: Sequence[tuple[str, Image.Image]] = (), *, subtitle: str
) -> Image.Image:
    """Return the strips laid out in two columns of strips under a heading, and the extras below them, RGB."""
    rows = -(-len(strips) // BLOCKS)
    block = len(COLUMNS) * CELL + (len(COLUMNS) - 1) * GAP
    width = 2 * MARGIN + BLOCKS * block + (BLOCKS - 1) * BLOCK_GAP
    below = HEADER + rows * (CAPTION + CELL + ROW_GAP)
    height = below + (FOOTER + _extra_px(len(extras), width) if extras else 0) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 26), "Pixelkiln", font=font(36), fill=INK)
    pen.text((MARGIN, 74), subtitle, font=font(16), fill=FAINT)
    for number in range(BLOCKS):
        left = MARGIN + number * (block + BLOCK_GAP)
        for column, name in enumerate(COLUMNS):
            place = (left + column * (CELL + GAP) + CELL // 2, HEADER - 14)
            pen.text(place, name, font=font(13), fill=FAINT, anchor="mm")
    for number, strip in enumerate(strips):
        left = MARGIN + (number // rows) * (block + BLOCK_GAP)
        top = HEADER + (number % rows) * (CAPTION + CELL + ROW_GAP)
        _draw(sheet, pen, strip, left, top, block)
    if extras:
        pen.text((MARGIN, below + 8), "and more", font=font(22), fill=INK)
        _draw_extras(sheet, pen, extras, below + FOOTER)
    return sheet


def _extra_px(count: int, width: int) -> int:
    """The side of each of `count` cells in one row."""
    return (width - 2 * MARGIN - (count - 1) * GAP) // max(count, 1)


def _draw_extras(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, extras: Sequence[tuple[str, Image.Image]], top: int
) -> None:
    side = _extra_px(len(extras), sheet.width)
    for number, (title, picture) in enumerate(extras):
        x = MARGIN + number * (side + GAP)
        seen = on_checks(picture) if picture.mode == "RGBA" else picture
        _paste(sheet, seen, x, top, Image.Resampling.BICUBIC, side)
        pen.rectangle((x, top, x + side - 1, top + side - 1), outline=EDGE)
        pen.text((x, top - 20), fitted(title, font(13), side), font=font(13), fill=FAINT)


def _draw(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, strip: Strip, left: int, top: int, width: int
) -> None:
    pen.text((left, top + 4), fitted(strip.title, font(17), width), font=font(17), fill=INK)
    pen.text((left, top + 26), fitted(strip.note, font(13), width), font=font(13), fill=FAINT)
    smooth, crisp = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
    cells = (
        (strip.picture, smooth),
        (strip.masks and strip.masks.convert("RGB"), crisp),
        (strip.overlay, smooth),
        (strip.cutout and on_checks(strip.cutout), smooth),
    )
    for column, (picture, filter_) in enumerate(cells):
        x, y = left + column * (CELL + GAP), top + CAPTION
        if picture is not None:
            _paste(sheet, picture, x, y, filter_)
        else:
            pen.text((x + CELL // 2, y + CELL // 2), "none", font=font(13), fill=FAINT, anchor="mm")
        pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=EDGE)


def _paste(
    sheet: Image.Image, picture: Image.Image, x: int, y: int, filter_: Image.Resampling, side: int = CELL
) -> None:
    scale = min(side / picture.width, side / picture.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    shown = picture.convert("RGB").resize(size, filter_)
    sheet.paste(shown, (x + (side - size[0]) // 2, y + (side - size[1]) // 2))


def on_checks(picture: Image.Image) -> Image.Image:
    """Return a picture with transparency over grey checks, so that one sees what was cut away."""
    picture = picture.convert("RGBA")
    square = max(4, picture.width // 16)
    ground = Image.new("RGB", picture.size, (255, 255, 255))
    pen = ImageDraw.Draw(ground)
    for row in range(0, picture.height, square):
        for column in range(0, picture.width, square):
            if (row // square + column // square) % 2:
                pen.rectangle((column, row, column + square - 1, row + square - 1), fill=(222, 222, 222))
    ground.paste(picture, mask=picture.getchannel("A"))
    return ground


def fitted(text: str, face: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return as much of a text as fits into a width in pixels."""
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own typeface."""
    return ImageFont.load_default(size)
