"""`generate` and `segment`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelkiln.cli.faults import Refused
from pixelkiln.cli.options import (
    Numbers,
    Pair,
    Words,
    connect,
    job_options,
    literal,
    output_options,
    wait_options,
)
from pixelkiln.cli.saving import check_folder, save_result
from pixelkiln.cli.screen import clean, emit_json, hint
from pixelkiln.cli.waiting import finish, report_failure, wait_for_jobs

if TYPE_CHECKING:
    from pixelkiln.client import Client, Job

_OF_JOB = re.compile(
    r"(?P<job>job_[0-9a-z]{26})(?:\.input\.(?P<field>[a-z]+)|\.(?P<role>[a-z]+)(?:\.(?P<index>\d{1,3}))?)?"
)


class Size(click.ParamType[tuple[int, int]]):
    """A `WIDTHxHEIGHT` in pixels."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Parse, or fail as wrong usage."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", value)
        if match is None:
            self.fail(f"{value!r} is not a size such as 512x512", param, ctx)
        return int(match[1]), int(match[2])


output_folder = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Save the files in this folder (implies --wait)."
)
force_option = click.option("--force", is_flag=True, help="Overwrite files that exist.")


@click.command(
    epilog='Example:  pixelkiln generate "two red balloons over the sea" -n 4 --seed 42 --segment -o out/'
)
@click.argument("prompt", required=False)
@click.option("--model", help="A model of `pixelkiln models`.")
@click.option("-n", "--count", type=int, default=1, show_default=True, help="How many pictures.")
@click.option("--seed", type=int, help="The same seed gives the same picture.")
@click.option("--size", type=Size(), help="WIDTHxHEIGHT in pixels.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--guidance", type=float, help="How closely to follow the prompt.")
@click.option("--negative", "negative_prompt", help="What should not be seen.")
@click.option("--format", "form", type=click.Choice(["png", "webp", "jpeg"]), help="File format.")
@click.option("--option", "options", type=Pair(), multiple=True, help="A setting NAME=VALUE of the model.")
@click.option("--deterministic", is_flag=True, help="Run alone, so that the same bytes come out again.")
@click.option("--segment", "also_segment", is_flag=True, help="Take each picture apart as well.")
@job_options
@wait_options
@output_folder
@force_option
@output_options
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    prompt: str | None,
    size: tuple[int, int] | None,
    form: str | None,
    options: tuple[tuple[str, str], ...],
    deterministic: bool,
    also_segment: bool,
    priority: str | None,
    tags: tuple[tuple[str, str], ...],
    **rest: Any,
) -> None:
    """Make pictures of PROMPT (`-` reads it from stdin), or from noise by a model that needs none."""
    waiting = {name: rest.pop(name) for name in ("wait", "timeout", "output", "force", "as_json", "quiet")}
    fields = dict(rest, format=form, priority=priority, deterministic=deterministic or None)
    if size is not None:
        fields["width"], fields["height"] = size
    if options:
        fields["options"] = {name: literal(value) for name, value in options}
    if tags:
        fields["labels"] = dict(tags)
    check_folder(waiting["output"])
    client = connect(ctx)
    jobs = [client.generate(None if prompt is None else read_text(prompt), **fields)]
    if also_segment:
        pictures = [{"job": jobs[0].id, "index": index} for index in range(fields["count"])]
        jobs += [
            client.segment(picture, labels=fields.get("labels"), priority=priority, webhook=rest["webhook"])
            for picture in pictures
        ]
    deliver(client, jobs, [None] * len(jobs), **waiting)


@click.command(epilog="Example:  pixelkiln segment photos/*.jpg -o masks/")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--model", help="A model of `pixelkiln models`.")
@click.option(
    "--labels",
    "classes",
    type=Words(),
    help="Keep these classes, or find these phrases (`the red house`), by commas.",
)
@click.option(
    "--box", "boxes", type=Numbers(4), multiple=True, help="X0,Y0,X1,Y1: take what is inside; repeatable."
)
@click.option("--point", "points", type=Numbers(2), multiple=True, help="X,Y on the object; repeatable.")
@click.option("--background", type=Numbers(2), multiple=True, help="X,Y beside the object; repeatable.")
@click.option("--threshold", type=float, help="Lowest score of what is kept, 0 to 1.")
@click.option("--regions", type=int, help="How many regions or colours a classical method aims at.")
@click.option("--option", "options", type=Pair(), multiple=True, help="A setting NAME=VALUE of the model.")
@click.option(
    "--format", "forms", default="png,coco", show_default=True, help="What to save: png, coco or both."
)
@job_options
@wait_options
@output_folder
@force_option
@output_options
@click.pass_context
def segment(
    ctx: click.Context,
    /,
    images: tuple[str, ...],
    model: str | None,
    classes: list[str] | None,
    boxes: tuple[tuple[float, ...], ...],
    points: tuple[tuple[float, ...], ...],
    background: tuple[tuple[float, ...], ...],
    regions: int | None,
    threshold: float | None,
    options: tuple[tuple[str, str], ...],
    forms: str,
    priority: str | None,
    tags: tuple[tuple[str, str], ...],
    webhook: dict[str, str] | None,
    **waiting: Any,
) -> None:
    """Take pictures apart. IMAGE is a file, `-` for stdin, or a picture of a job.

    JOB is the first picture of a job, or the one it worked on; JOB.image.2 and JOB.cutout name another.
    """
    kinds = set(forms.split(","))
    if not kinds <= {"png", "coco"}:
        raise Refused(f"--format takes png and coco, not {forms!r}")
    marks = [{"x": x, "y": y, "positive": True} for x, y in points]
    marks += [{"x": x, "y": y, "positive": False} for x, y in background]
    wanted: dict[str, Any] = {
        "labels": classes or None,
        "boxes": [dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)) for box in boxes] or None,
        "points": marks or None,
        "regions": regions,
        "threshold": threshold,
        "options": {name: literal(value) for name, value in options} or None,
    }
    request = {name: value for name, value in wanted.items() if value is not None}
    envelope: dict[str, Any] = {
        "kind": "segment",
        "model": model,
        "priority": priority,
        "labels": dict(tags) or None,
        "webhook": webhook,
    }
    envelope = {name: value for name, value in envelope.items() if value is not None}
    check_folder(waiting["output"])
    pictures = [(image, open_image(image)) for image in images]
    client = connect(ctx)
    jobs = []
    for name, picture in pictures:
        image = picture if isinstance(picture, dict) else client.upload(picture)
        job = {**envelope, "input": {**request, "image": image}}
        if not isinstance(picture, dict):
            job["labels"] = {"file": Path(name).name[:200], **dict(tags)}
        jobs.append(client.submit(job))
    stems = [
        None if isinstance(picture, dict) or name == "-" else Path(name).stem for name, picture in pictures
    ]
    deliver(client, jobs, stems, kinds=kinds, **waiting)


def deliver(
    client: Client,
    jobs: list[Job],
    stems: list[str | None],
    *,
    wait: bool,
    timeout: float | None,
    output: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    kinds: set[str] | None = None,
) -> None:
    """Print the ids of submitted jobs, or wait for them, save what they made and print where it is."""
    for job in jobs:
        for warning in job.warnings:
            hint(f"warning: {clean(warning.get('message') or warning.get('code', ''))}")
    if not (wait or output):
        if as_json:
            emit_json([job.resource for job in jobs] if len(jobs) > 1 else jobs[0].resource)
        else:
            click.echo("\n".join(job.id for job in jobs))
        if not quiet and not as_json:
            hint(f"`pixelkiln wait {jobs[0].id}` waits for it; `-o FOLDER` would have saved it.")
        return
    from pixelkiln.client.connection import absolute

    stem_of = {job.id: stem for job, stem in zip(jobs, stems, strict=True)}
    failed = False
    ended = []
    for job in wait_for_jobs(client, [job.id for job in jobs], timeout, quiet=quiet):
        ended.append(job.resource)
        if report_failure(job):
            failed = True
            continue
        if output is not None:
            lines = save_result(job.result(), output, stem_of[job.id], force=force, kinds=kinds)
        else:
            lines = [clean(absolute(client.url, artifact.url)) for artifact in job.resource.artifacts]
        if classes := job.resource.detail.get("classes", ()):
            which = clean(job.resource.labels.get("file", job.id))  # several pictures may be asked about
            found = [f"{one['score']:.3f}  {clean(str(one['label']))}  {which}" for one in classes]
            lines = [*(lines if output is not None else ()), *found]
        if not as_json:
            click.echo(job.id if quiet else "\n".join(lines))
    if as_json:
        emit_json(ended if len(ended) != 1 else ended[0])
    finish(failed)


def read_text(prompt: str) -> str:
    """Return the prompt, or stdin for `-`."""
    if prompt != "-":
        return prompt
    return read_stdin().decode("utf-8", errors="surrogateescape").strip()


def read_stdin() -> bytes:
    """Read all of stdin.

    Raises:
        Refused: it is closed, or a terminal nobody would know to type a picture into.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise Refused("`-` reads from stdin, and nothing is piped into it")
    return sys.stdin.buffer.read()


def open_image(name: str) -> bytes | dict[str, Any]:
    """Return a file's bytes, or a reference: `JOB`, `JOB.ROLE`, `JOB.ROLE.INDEX` or `JOB.input.FIELD`.

    Raises:
        Refused: the file cannot be read.
    """
    if name == "-":
        return read_stdin()
    match = _OF_JOB.fullmatch(name)
    if match and not Path(name).exists() and _is_role(match["role"]):
        return _of_job(**match.groupdict())
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise Refused(f"{name}: {error.strerror}") from error


def _is_role(role: str | None) -> bool:
    from pixelkiln_shared.kinds import Role

    return role is None or role in set(Role)


def _of_job(job: str, field: str | None, role: str | None, index: str | None) -> dict[str, Any]:
    if field is not None:
        return {"job": job, "input": field}
    return {"job": job, **({"role": role} if role else {}), **({"index": int(index)} if index else {})}


COMMANDS = {"generate": generate, "segment": segment}
