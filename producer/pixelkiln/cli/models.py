"""`models`: what the server offers; and, for who runs it, the weights of this machine's catalogue."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixelkiln.cli.faults import Refused
from pixelkiln.cli.options import connect, output_options
from pixelkiln.cli.screen import clean, emit_json, hint, shorten, table

if TYPE_CHECKING:
    from pixelkiln.resources import ModelResource, WorkerResource


@click.group(invoke_without_command=True)
@output_options
@click.pass_context
def models(ctx: click.Context, as_json: bool, quiet: bool) -> None:
    """List the models (also without a sub-command), show one, look after their weights."""
    if ctx.invoked_subcommand is None:
        _list(ctx, as_json=as_json, quiet=quiet)
    elif as_json or quiet:
        raise click.UsageError(
            f"options come after the sub-command: pixelkiln models {ctx.invoked_subcommand} ..."
        )


@models.command(name="list")
@output_options
@click.pass_context
def list_models(ctx: click.Context, as_json: bool, quiet: bool) -> None:
    """List the models, what they do, and how many workers serve them."""
    _list(ctx, as_json=as_json, quiet=quiet)


def _list(ctx: click.Context, *, as_json: bool, quiet: bool) -> None:
    listed = connect(ctx).models()
    if as_json:
        emit_json(listed)
    elif quiet:
        for model in listed:
            click.echo(model.id)
    else:
        rows = [(m.id, ", ".join(m.kinds), m.ready_workers, shorten(m.description, 90)) for m in listed]
        table(["MODEL", "DOES", "WORKERS", "WHAT"], rows)
        for model in listed:
            if model.unavailable:
                hint(f"no worker can serve {clean(model.unavailable)}")


@models.command()
@click.argument("identity", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(ctx: click.Context, identity: str, as_json: bool) -> None:
    """Show all that is known of a model: what it takes, its limits, words, licence and hashes."""
    client = connect(ctx)
    model = next((one for one in client.models() if one.id == identity), None)
    if model is None:
        raise Refused(f"there is no model {identity!r}; `pixelkiln models` lists them")
    if as_json:
        emit_json(model)
        return
    for name, value in [*_facts(model), *_whereabouts(model, client.workers())]:
        click.echo(f"{name:12} {clean(value)}")


def _facts(model: ModelResource) -> Iterator[tuple[str, str]]:
    """Yield what is known of a model, a line each, without what is empty."""
    lines: list[tuple[str, object]] = [
        ("id", model.id),
        ("title", model.title),
        ("what", model.description),
        ("kinds", ", ".join(model.kinds)),
        ("default for", ", ".join(model.default_for)),
        ("family", model.family),
        ("world", model.world),
        ("licence", model.licence),
        *(("default", f"{name} = {value}") for name, value in model.defaults.items()),
        *(("limit", f"{name} = {value}") for name, value in model.limits.items()),
        *(("option", f"{k} = {' | '.join(map(str, v)) or 'any'}") for k, v in model.options.items()),
        ("classes", ", ".join(model.classes)),
        ("things", ", ".join(model.things)),
        ("vocabulary", " ".join(model.vocabulary)),
        *(("example", prompt) for prompt in model.example_prompts),
        *(("sha256", f"{digest}  {path}") for path, digest in model.sha256.items()),
    ]
    return ((name, str(value)) for name, value in lines if value)


def _whereabouts(model: ModelResource, workers: list[WorkerResource]) -> Iterator[tuple[str, str]]:
    """Yield which workers serve, hold or cannot load the model."""
    yield "workers", f"{model.ready_workers} ready"
    for worker in workers:
        for one in worker.loaded:
            if one.id == model.id:
                hashed = f", weights {one.sha256}" if one.sha256 else ""
                size = f"{one.footprint_bytes / 1e6:.1f} MB in {one.load_s:.1f} s"
                yield "loaded", f"{worker.id} on {worker.device}: {size}{hashed}"
        if model.id in worker.unavailable:
            yield "unavailable", f"{worker.id}: {worker.unavailable[model.id]}"


# ------------------------------------------------------------------------------------------- on this machine


@models.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--load", is_flag=True, help="Also load each on this machine's device.")
def verify(ids: tuple[str, ...], load: bool) -> None:
    """Check the weights of this machine's catalogue: all there, whole, and the ones named.

    Exit code 1 when one is bad. The catalogue is that of PIXELKILN_CATALOGUE.
    """
    _here(["verify", *ids, *(["--load"] if load else [])], needs=["torch"] if load else ["safetensors"])


@models.command()
@click.argument("identity", metavar="ID")
@click.option(
    "--write", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Put the hashes and the pinned revision into this catalogue file.",
)  # fmt: skip
def pull(identity: str, file: Path | None) -> None:
    """Fetch a model's weights into this machine's cache, from the hub or a bucket, and print their hashes.

    The hub is asked even where workers run with it off.
    """
    _here(["pull", identity, *(["--write", str(file)] if file else [])], needs=["safetensors", "boto3"])


@models.command()
@click.argument("identity", metavar="ID")
@click.option("--batch", default="1,2,4,8", show_default=True, help="Batch sizes to measure.")
@click.option("--steps", type=click.IntRange(min=1), help="Left out: the model's default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(identity: str, batch: str, steps: int | None, as_json: bool) -> None:
    """Measure a model on this machine's device: time to load, seconds a picture, memory."""
    if not all(part.isdigit() and int(part) > 0 for part in batch.split(",")):
        raise click.UsageError(f"--batch {batch!r}: numbers separated by commas")
    more = [*(["--steps", str(steps)] if steps else []), *(["--json"] if as_json else [])]
    _here(["bench", identity, "--batch", batch, *more], needs=["torch"])


def _here(arguments: list[str], *, needs: list[str]) -> None:
    """Let the worker's own code do it, in a process of its own: this package never imports torch."""
    if any(find_spec(name) is None for name in needs):
        raise Refused("weights need the worker's libraries: pip install 'pixelkiln[worker]'")
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "pixelkiln_worker.models", *arguments], check=False)
    raise click.exceptions.Exit(done.returncode)


COMMANDS = {"models": models}
