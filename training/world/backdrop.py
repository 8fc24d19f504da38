"""Sky, sun or moon, mountains and ground: everything behind the objects."""

import numpy as np

from training.world.drawing import Canvas, Floats, Mark, Paint, arc
from training.world.grammar import CLASSES, GROUND_CLASS, Spec

LIGHT = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.84, 0.74),
    "night": (0.55, 0.58, 0.80),
    "dawn": (1.0, 0.92, 0.95),
}
"""The tint each time of day lays over objects and ground."""
_SKY = {  # zenith, middle, horizon
    "day": ((64, 134, 228), (130, 180, 240), (198, 228, 250)),
    "sunset": ((84, 58, 132), (228, 100, 92), (255, 178, 92)),
    "night": ((8, 10, 38), (27, 31, 76), (48, 54, 114)),
    "dawn": ((122, 150, 222), (190, 176, 210), (255, 202, 196)),
}
_GROUND = {
    "meadow": ((130, 198, 84), (56, 136, 50)),
    "desert": ((242, 208, 138), (206, 154, 86)),
    "snow": ((246, 249, 252), (198, 214, 238)),
    "sea": ((66, 142, 206), (18, 62, 130)),
}
_MOUNTAIN_DEPTH = 0.08


def _rows(canvas: Canvas) -> Floats:
    rows = (np.arange(canvas.size_px, dtype=np.float32) + 0.5) / canvas.size_px
    return rows.astype(np.float32)


def paint_sky(canvas: Canvas, rng: np.random.Generator, time: str, horizon: float) -> None:
    """Fill the whole picture with the sky's gradient, and by night with stars."""
    height = np.clip(_rows(canvas) / horizon, 0, 1)
    for channel in range(3):
        stops = [colour[channel] for colour in _SKY[time]]
        canvas.image[..., channel] = np.interp(height, [0, 0.55, 1], stops)[:, None]
    if time == "night":
        for _ in range(int(rng.integers(14, 30))):
            star = Paint(colour=(255, 250, 220), shade=0, alpha=float(rng.uniform(0.4, 1)))
            canvas.ellipse((rng.random(), rng.random() * horizon * 0.9), (0.005, 0.005), star)


def _halo(canvas: Canvas, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
    for scale, alpha in ((2.0, 0.16), (1.5, 0.22)):
        canvas.ellipse(centre, (radius * scale, radius * scale), Paint(colour=colour, shade=0, alpha=alpha))


def paint_sun_or_moon(canvas: Canvas, rng: np.random.Generator, time: str, horizon: float) -> float:
    """Paint the light of the sky; returns its x, where water mirrors it."""
    x = float(rng.uniform(0.14, 0.86))
    if time == "night":
        centre, radius = (x, rng.uniform(0.11, 0.22)), rng.uniform(0.065, 0.085)
        _halo(canvas, centre, radius, (150, 160, 200))
        canvas.ellipse(centre, (radius, radius), Paint(colour=(242, 238, 212), shade=0.08), Mark(name="moon"))
        for right, down, size in ((-0.3, -0.2, 0.22), (0.3, 0.25, 0.17), (0.1, -0.45, 0.13)):
            crater = (centre[0] + right * radius, centre[1] + down * radius)
            canvas.ellipse(crater, (size * radius, size * radius), Paint(colour=(208, 205, 186), shade=0))
        return x
    disc = {"day": (255, 224, 92), "dawn": (255, 240, 194), "sunset": (255, 228, 132)}[time]
    y, radius = {
        "day": (rng.uniform(0.1, 0.2), rng.uniform(0.06, 0.08)),
        "dawn": (horizon - rng.uniform(0.08, 0.16), rng.uniform(0.06, 0.08)),
        "sunset": (horizon - rng.uniform(0.02, 0.1), rng.uniform(0.09, 0.12)),
    }[time]
    _halo(canvas, (x, y), radius, (255, 196, 116) if time == "sunset" else (255, 246, 200))
    canvas.ellipse((x, y), (radius, radius), Paint(colour=disc, shade=0), Mark(name="sun"))
    return x


def paint_mountains(canvas: Canvas, rng: np.random.Generator, time: str, horizon: float) -> None:
    """Two ranges of snow-capped peaks on the horizon."""
    light = LIGHT["night"] if time == "night" else LIGHT["day"]
    base = np.asarray((112, 76, 106) if time == "sunset" else (104, 112, 140), np.float32)
    for layer in range(2):
        peaks = int(rng.integers(2, 4))
        for peak in range(peaks):
            x = (peak + rng.uniform(0.15, 0.85)) / peaks
            h = rng.uniform(0.16, 0.28) * (1 - 0.35 * layer)
            w = h * rng.uniform(1.0, 1.4)
            rock = Paint(colour=base * (1.14 - 0.24 * layer), shade=0.35, light=light)
            outline = [(x - w, horizon + 0.02), (x, horizon - h), (x + w, horizon + 0.02)]
            canvas.polygon(outline, rock, Mark(name="mountain", depth=_MOUNTAIN_DEPTH))
            if layer == 0:
                zigzag = [(-0.3, 0.7), (0, 1), (0.3, 0.7), (0.15, 0.77), (0, 0.67), (-0.15, 0.77)]
                cap = [(x + right * w, horizon - up * h) for right, up in zigzag]
                canvas.polygon(cap, Paint(colour=(242, 246, 252), shade=0.12, light=light))


def _ground_colours(canvas: Canvas, spec: Spec, horizon: float) -> tuple[Floats, Floats]:
    """The ground's colour, (H, 1, 3), and depth, (H, 1), by row."""
    far, near = (np.asarray(colour, np.float32) for colour in _GROUND[spec.terrain])
    reach = np.clip((_rows(canvas) - horizon) / (1 - horizon), 0, 1)[:, None]
    colours = far + (near - far) * reach
    if spec.terrain == "sea" and spec.time in ("sunset", "dawn"):
        colours = colours * 0.72 + np.asarray(_SKY[spec.time][2], np.float32) * 0.28 * (1 - reach)
    tinted = colours * np.asarray(LIGHT[spec.time], np.float32)
    return tinted[:, None].astype(np.float32), (0.12 + 0.88 * reach).astype(np.float32)


def paint_ground(
    canvas: Canvas, rng: np.random.Generator, spec: Spec, horizon: float, light_x: float
) -> None:
    """Land with a gentle skyline, or a flat sea."""
    x = np.linspace(0, 1, 64)
    wave = np.zeros_like(x)
    if spec.terrain != "sea":
        for harmonic, amplitude in ((1, rng.uniform(0.008, 0.028)), (2, rng.uniform(0.004, 0.012))):
            wave += amplitude * np.sin(2 * np.pi * harmonic * x + rng.uniform(0, 2 * np.pi))
    skyline = np.stack([x, horizon + wave], axis=1)
    name = GROUND_CLASS[spec.terrain]
    colours, depth = _ground_colours(canvas, spec, horizon)
    mean_colour = colours[int(horizon * canvas.size_px) + 1, 0]
    outline = np.concatenate([skyline, [(1, 1.05), (0, 1.05)]])
    canvas.polygon(outline, Paint(colour=mean_colour, shade=0), Mark(name=name))
    inside = canvas.classes == CLASSES.index(name)
    canvas.image[inside] = np.broadcast_to(colours, canvas.image.shape)[inside]
    canvas.depth[inside] = np.broadcast_to(depth, canvas.depth.shape)[inside]
    if spec.terrain == "sea":
        _paint_waves(canvas, rng, spec.time, horizon, light_x)
    else:
        _paint_tufts(canvas, rng, spec, horizon)


def _paint_waves(canvas: Canvas, rng: np.random.Generator, time: str, horizon: float, light_x: float) -> None:
    for _ in range(int(rng.integers(8, 14))):
        reach = float(rng.random() ** 1.3)
        centre = (rng.random(), horizon + 0.015 + (1 - horizon) * reach)
        canvas.ellipse(
            centre,
            (0.03 + 0.09 * reach, 0.004 + 0.004 * reach),
            Paint(colour=(222, 238, 252), shade=0, alpha=0.34),
        )
    if time == "day":
        return
    for step in range(6):
        glint = (light_x, horizon + 0.02 + (1 - horizon) * step / 7)
        canvas.ellipse(
            glint, (rng.uniform(0.03, 0.07), 0.007), Paint(colour=(255, 236, 190), shade=0, alpha=0.45)
        )


def _paint_tufts(canvas: Canvas, rng: np.random.Generator, spec: Spec, horizon: float) -> None:
    near = np.asarray(_GROUND[spec.terrain][1], np.float32)
    light = LIGHT[spec.time]
    fold = horizon + (1 - horizon) * rng.uniform(0.3, 0.55)
    phase = rng.uniform(0, 2 * np.pi)
    x = np.linspace(0, 1, 32)
    hill = np.stack([x, fold + 0.03 * np.sin(2 * np.pi * x + phase)], axis=1)
    shade = Paint(colour=near, shade=0.15, light=light, alpha=0.4, vertical=True)
    canvas.polygon(np.concatenate([hill, [(1, 1.05), (0, 1.05)]]), shade)
    for _ in range(int(rng.integers(6, 14))):
        px, py = rng.random(), horizon + 0.06 + (1 - horizon) * rng.random()
        mark = Paint(colour=near * 0.86, shade=0, light=light, alpha=0.6)
        if spec.terrain == "meadow":
            canvas.polygon(
                [
                    (px - 0.012, py),
                    (px - 0.008, py - 0.026),
                    (px, py - 0.008),
                    (px + 0.008, py - 0.03),
                    (px + 0.012, py),
                ],
                mark,
            )
        else:
            canvas.polygon(arc((px, py), (0.022, 0.005)), mark)
