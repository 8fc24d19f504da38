"""Turns a spec into a picture with exact classes, instances and depth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.world import backdrop
from training.world.drawing import Canvas, Mark
from training.world.grammar import Spec
from training.world.layout import Placed, place
from training.world.sprites import RGB, SPRITES, Brush


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A drawn scene; all maps are (size, size).

    `image` is HWC uint8 RGB. `classes` holds ids into `grammar.CLASSES`; `instances` numbers the objects
    from 1 in the order of `objects`, 0 elsewhere; `depth` is float32 in [0, 1], 0 for the sky and 1
    nearest.
    """

    image: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    depth: NDArray[np.float32]
    objects: tuple[Placed, ...]


def render(spec: Spec, rng: np.random.Generator, size_px: int = 128) -> Scene:
    """Draw `spec`; what it leaves open (where exactly, how large, which stars) comes from `rng`."""
    canvas = Canvas(size_px)
    horizon = float(rng.uniform(0.48, 0.58) if spec.terrain == "sea" else rng.uniform(0.5, 0.62))
    backdrop.paint_sky(canvas, rng, spec.time, horizon)
    light_x = backdrop.paint_sun_or_moon(canvas, rng, spec.time, horizon)
    if spec.mountains:
        backdrop.paint_mountains(canvas, rng, spec.time, horizon)
    backdrop.paint_ground(canvas, rng, spec, horizon, light_x)
    objects = place(rng, spec, horizon)
    for number, item in enumerate(objects, start=1):
        brush = Brush(
            canvas=canvas,
            x=item.x,
            y=item.y,
            h=item.h,
            colour=RGB.get(item.colour, (0, 0, 0)),
            light=backdrop.LIGHT[spec.time],
            mark=Mark(name=item.kind, instance=number, depth=item.depth),
            night=spec.time == "night",
        )
        SPRITES[item.kind](brush)
    return Scene(
        image=np.clip(np.round(canvas.image), 0, 255).astype(np.uint8),
        classes=canvas.classes,
        instances=canvas.instances,
        depth=canvas.depth,
        objects=tuple(objects),
    )
