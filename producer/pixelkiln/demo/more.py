"""What else can be done with a scene: drawn anew, painted into, asked about, measured, and from noise."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from pixelkiln.client import Client, Job, Result
from pixelkiln_shared.kinds import Role

SIDE_PX = 128
_SKY = (64, 2, 126, 62)  # XYXY in pixels of the scene: where a balloon has room
_ON_THE_LEFT = {"x": 32.0, "y": 88.0}


@dataclass(frozen=True, slots=True)
class Extra:
    """A job beside the main story, and which of its pictures is shown."""

    title: str
    job: Job
    show: Callable[[Result], Image.Image]


def submit_extras(client: Client, scene: Job, photograph: dict[str, str]) -> list[Extra]:
    """Submit what else there is: on a scene with a red house on its left, and on a photograph.

    Args:
        client: of the server that has both.
        scene: the job that draws it, `SIDE_PX` wide and high.
        photograph: the reference of the stored picture.
    """
    picture, overlay = _show(Role.IMAGE), _show(Role.OVERLAY)
    mask = client.upload(_mask())
    anew = client.edit(scene, "a red house on the left and two green trees in the snow at night", seed=5)
    painted = client.edit(scene, "a yellow balloon", mask=mask, seed=4)
    phrase = client.segment(scene, labels=["the red house"])
    things = client.segment(scene, model="toyworld-instances")
    noise = client.generate(model="toyworld-gan", seed=3)
    return [
        Extra("drawn anew: in the snow at night", anew, picture),
        Extra("a balloon painted in", painted, picture),
        Extra("by phrase: the red house", phrase, overlay),
        Extra("by a click on it", client.segment(scene, points=[_ON_THE_LEFT]), overlay),
        Extra("every thing its own", things, overlay),
        Extra("how near it is", client.depth(scene), _show(Role.PREVIEW)),
        Extra("for red-cyan glasses", client.stereo(scene), _show(Role.IMAGE, 1)),
        Extra("the photograph, cut out", client.cutout(photograph), _show(Role.CUTOUT)),
        Extra("from noise, without a prompt", noise, picture),
    ]


def shown(extras: Sequence[Extra]) -> list[tuple[str, Image.Image]]:
    """Return title and picture of each that succeeded."""
    return [(one.title, one.show(one.job.result())) for one in extras if one.job.status == "succeeded"]


def _show(role: Role, index: int = 0) -> Callable[[Result], Image.Image]:
    return lambda result: result.of(role)[index].pil()


def _mask() -> bytes:
    """Return a mask as a PNG: white where a scene shall be drawn anew."""
    mask = Image.new("L", (SIDE_PX, SIDE_PX))
    ImageDraw.Draw(mask).rectangle(_SKY, fill=255)
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()
