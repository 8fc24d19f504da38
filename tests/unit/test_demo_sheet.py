"""The demo's picture and its contact sheet."""

from __future__ import annotations

from typing import Any

from PIL import Image

from pixelkiln.demo.run import configures
from pixelkiln.demo.sheet import Strip, contact_sheet, fitted, font, on_checks
from pixelkiln.demo.still_life import HEIGHT, MUG_BOX, WIDTH, still_life


def strip(title: str, side: int = 128) -> Strip:
    picture = Image.new("RGB", (side, side), "teal")
    cutout = Image.new("RGBA", (side, side), (255, 0, 0, 0))
    masks = Image.new("P", (side, side))
    return Strip(title=title, note="note", picture=picture, masks=masks, overlay=picture, cutout=cutout)


def counts(picture: Image.Image) -> dict[Any, int]:
    """Return how many pixels have each colour."""
    return {colour: count for count, colour in picture.getcolors(2**24) or []}


def test_the_still_life_has_a_blue_mug_where_its_box_says() -> None:
    picture = still_life()
    assert picture.size == (WIDTH, HEIGHT)
    x0, y0, x1, y1 = MUG_BOX
    inside = picture.crop((x0 + 40, y0 + 70, x1 - 70, y1 - 40)).resize((1, 1), Image.Resampling.BOX)
    middle = inside.getpixel((0, 0))
    assert isinstance(middle, tuple)
    red, green, blue = middle
    assert blue > red + 30
    assert blue > green + 20


def test_a_sheet_holds_every_strip_and_those_without_masks() -> None:
    bare = Strip(
        title="bare", note="", picture=Image.new("L", (480, 20)), masks=None, overlay=None, cutout=None
    )
    two = contact_sheet([strip("a"), strip("b")], subtitle="two")
    five = contact_sheet([*(strip("a" * 300) for _ in range(4)), bare], subtitle="five")
    assert two.width == five.width
    assert five.height > two.height


def test_extras_stand_below_the_strips() -> None:
    plain = contact_sheet([strip("a")], subtitle="one")
    green = Image.new("RGBA", (50, 20), (0, 200, 0, 255))
    more = contact_sheet([strip("a")], [("x", green), ("y", green)], subtitle="one")
    assert more.height > plain.height
    below = more.crop((0, plain.height, more.width, more.height))
    assert counts(below)[(0, 200, 0)] > 10_000


def test_transparency_shows_as_checks() -> None:
    assert set(counts(on_checks(Image.new("RGBA", (64, 64), (255, 0, 0, 0))))) == {
        (255, 255, 255),
        (222, 222, 222),
    }


def test_long_captions_are_shortened_to_fit() -> None:
    assert fitted("short", font(13), 500) == "short"
    cut = fitted("long " * 100, font(13), 200)
    assert cut.endswith("…")
    assert font(13).getlength(cut) <= 200


def test_the_demo_keeps_away_from_real_servers() -> None:
    assert configures("PIXELKILN_REDIS_URL")
    assert configures("REDIS_URL")
    assert not configures("PATH")
