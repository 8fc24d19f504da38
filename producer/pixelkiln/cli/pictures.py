"""`edit`, `cutout`, `upscale`, `depth`, `stereo` and `classify`: pictures in, something else out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pixelkiln.cli.make import Size, deliver, force_option, open_image, output_folder, read_text
from pixelkiln.cli.options import Pair, Words, connect, job_options, literal, output_options, wait_options
from pixelkiln.cli.saving import check_folder

if TYPE_CHECKING:
    from pixelkiln.client import Client, Job

F = TypeVar("F", bound=Callable[..., Any])
_WAITING = ("wait", "timeout", "output", "force", "as_json", "quiet")

_images = click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
_form = click.option("--format", type=click.Choice(["png", "webp", "jpeg"]), help="File format.")
_seed = click.option("--seed", type=int, help="The same seed gives the same picture.")
_guidance = click.option("--guidance", type=float, help="How closely to follow the prompt.")
_negative = click.option("--negative", "negative_prompt", help="What should not be seen.")
_steps = click.option("--steps", type=int, help="Denoising steps.")


def _picture_options(command: F) -> F:
    """Add what every command of this module takes: the model, the envelope, what to do with the result."""
    for add in (
        output_options,
        force_option,
        output_folder,
        wait_options,
        job_options,
        click.option("--option", "options", type=Pair(), multiple=True, help="A setting NAME=VALUE."),
        click.option("--model", help="A model of `pixelkiln models`."),
    ):
        command = add(command)
    return command


@click.command(epilog='Example:  pixelkiln edit house.png "a red house at night" --strength 0.6 -o out/')
@click.argument("image")
@click.argument("prompt", required=False)
@click.option("--mask", help="A picture of the same size: what is not black in it is drawn anew.")
@click.option("--strength", type=float, help="How far from the picture: above 0, at most 1.")
@click.option("-n", "--count", type=int, default=1, show_default=True, help="How many pictures.")
@_seed
@click.option("--size", type=Size(), help="WIDTHxHEIGHT in pixels; left out: the picture's.")
@_steps
@_guidance
@_negative
@_form
@_picture_options
@click.pass_context
def edit(
    ctx: click.Context,
    /,
    image: str,
    prompt: str | None,
    mask: str | None,
    size: tuple[int, int] | None,
    **given: Any,
) -> None:
    """Draw IMAGE anew by PROMPT (`-` reads it from stdin), or only what a mask marks.

    IMAGE and the mask are files, or pictures of jobs: JOB, JOB.image.2, JOB.mask, JOB.input.mask.
    """
    fields = given | {"prompt": None if prompt is None else read_text(prompt)}
    if size is not None:
        fields["width"], fields["height"] = size
    if mask is not None:
        fields["mask"] = open_image(mask)
    _work(ctx, "edit", (image,), fields)


@click.command(epilog="Example:  pixelkiln cutout products/*.jpg -o cut/")
@_images
@click.option("--format", type=click.Choice(["png", "webp"]), help="File format.")
@_picture_options
@click.pass_context
def cutout(ctx: click.Context, /, images: tuple[str, ...], **given: Any) -> None:
    """Put the foreground of pictures on transparent ground."""
    _work(ctx, "cutout", images, given)


@click.command(epilog="Example:  pixelkiln upscale small.png --scale 4 -o large/")
@_images
@click.option("--scale", type=click.IntRange(2, 4), help="How many times as wide and high.")
@click.option("--prompt", help="What it shows, for models that read it.")
@_seed
@_steps
@_guidance
@_negative
@_form
@_picture_options
@click.pass_context
def upscale(ctx: click.Context, /, images: tuple[str, ...], **given: Any) -> None:
    """Make pictures larger."""
    _work(ctx, "upscale", images, given)


@click.command(epilog="Example:  pixelkiln depth scene.png -o out/")
@_images
@_picture_options
@click.pass_context
def depth(ctx: click.Context, /, images: tuple[str, ...], **given: Any) -> None:
    """Estimate how near each part of pictures is: a 16-bit depth map, and one in colours."""
    _work(ctx, "depth", images, given)


@click.command(epilog="Example:  pixelkiln stereo scene.png --disparity 0.04 -o out/")
@_images
@click.option("--disparity", type=float, help="Of the nearest pixels, as a share of the width.")
@_form
@_picture_options
@click.pass_context
def stereo(ctx: click.Context, /, images: tuple[str, ...], **given: Any) -> None:
    """Make pictures for two eyes: side by side, and for red-cyan glasses."""
    _work(ctx, "stereo", images, given)


@click.command(epilog="Example:  pixelkiln classify photos/*.jpg --model my-clip --labels cat,dog --wait")
@_images
@click.option("--labels", type=Words(), help="Choose among these, by commas, where the model reads text.")
@click.option("--top", type=int, help="How many classes to name.")
@_picture_options
@click.pass_context
def classify(ctx: click.Context, /, images: tuple[str, ...], **given: Any) -> None:
    """Name what pictures show."""
    _work(ctx, "classify", images, given)


def _work(ctx: click.Context, kind: str, images: tuple[str, ...], given: dict[str, Any]) -> None:
    """Submit a job for each picture, then print or save what comes of them."""
    waiting = {name: given.pop(name) for name in _WAITING}
    envelope = {"kind": kind, **{name: given.pop(name) for name in ("model", "priority", "webhook")}}
    tags = dict(given.pop("tags"))
    given["options"] = {name: literal(value) for name, value in given["options"]} or None
    wanted = {name: value for name, value in given.items() if value is not None}
    check_folder(waiting["output"])
    opened = [(name, open_image(name)) for name in images]  # before anything is sent
    client = connect(ctx)
    if isinstance(wanted.get("mask"), bytes):
        wanted["mask"] = client.upload(wanted["mask"])
    jobs = [_submit(client, envelope, wanted, name, picture, tags) for name, picture in opened]
    stems = [
        None if isinstance(picture, dict) or name == "-" else Path(name).stem for name, picture in opened
    ]
    deliver(client, jobs, stems, **waiting)


def _submit(
    client: Client,
    envelope: dict[str, Any],
    wanted: dict[str, Any],
    name: str,
    picture: bytes | dict[str, Any],
    tags: dict[str, str],
) -> Job:
    if isinstance(picture, dict):
        image, labels = picture, tags
    else:
        image, labels = client.upload(picture), {"file": Path(name).name[:200], **tags}
    given = {**envelope, "labels": labels or None}
    request = {key: value for key, value in given.items() if value is not None}
    return client.submit({**request, "input": {**wanted, "image": image}})


COMMANDS = {
    "edit": edit,
    "cutout": cutout,
    "upscale": upscale,
    "depth": depth,
    "stereo": stereo,
    "classify": classify,
}
