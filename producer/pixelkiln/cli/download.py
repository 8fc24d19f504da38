"""`download`: what jobs made, into a folder or a COCO data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixelkiln.cli.options import connect
from pixelkiln.cli.saving import check_folder, save_result
from pixelkiln.cli.screen import hint
from pixelkiln.cli.waiting import Progress, finish, is_group, report_failure

if TYPE_CHECKING:
    from pixelkiln.client import Client, Job


@click.command(epilog="Example:  pixelkiln download grp_... -o dataset/ --as coco")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path(), help="Into this folder.")
@click.option(
    "--as", "form", type=click.Choice(["folder", "coco"]), default="folder", show_default=True,
    help="Files as they are, or images/ and one annotations.json.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option("--resume", is_flag=True, help="Skip files that exist.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def download(
    ctx: click.Context, ids: tuple[str, ...], output: Path, form: str, force: bool, resume: bool, quiet: bool
) -> None:
    """Save the files of finished jobs or groups; exit code 1 when some job has no result."""
    check_folder(output)
    client = connect(ctx)
    missing = False
    done = 0
    data_set = None
    if form == "coco":
        from pixelkiln.cli.coco import DataSet

        data_set = DataSet(output, force=force, resume=resume)
    with Progress(quiet=quiet) as progress:
        for job in chosen(client, ids):
            done += 1
            progress.show(done, done, job.id)
            if job.status != "succeeded":
                missing = True
                report_failure(job)
                continue
            if data_set is not None:
                data_set.add(client, job)
                continue
            paths = save_result(job.result(), output, force=force, resume=resume)
            if not quiet:
                click.echo("\n".join(paths))
    if data_set is not None:
        path = data_set.finish()
        if not quiet:
            click.echo(str(path))
    if missing:
        hint("some jobs have no result (yet); `pixelkiln wait ID` waits, `pixelkiln retry ID` tries again")
    finish(missing)


def chosen(client: Client, ids: tuple[str, ...]) -> Iterator[Job]:
    """Yield the jobs named, and those of the groups named."""
    for identity in ids:
        if is_group(identity):
            yield from client.group(identity).jobs()
        else:
            yield client.job(identity)


COMMANDS = {"download": download}
