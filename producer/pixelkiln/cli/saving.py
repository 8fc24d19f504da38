"""Results into files: whole or not at all, and never over a file that is there unless asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixelkiln.cli.faults import FAILED, Refused
from pixelkiln.cli.screen import hint

if TYPE_CHECKING:
    from pixelkiln.client import Result


def check_folder(folder: Path | None) -> None:
    """Make the folder before any work is asked for.

    Raises:
        Refused: it is a file, or cannot be made.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{folder}: {error.strerror}") from error


def save_result(
    result: Result,
    folder: Path,
    stem: str | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    kinds: set[str] | None = None,
) -> list[str]:
    """Save a result's files in a folder and return their paths.

    Args:
        stem: what file names begin with; left out: the job's id.
        force: overwrite what is there.
        resume: skip what is there.
        kinds: of `png` (pictures) and `coco` (annotations); left out: both, and the manifest.

    Raises:
        Exit: a file exists, or the disk does not take it.
    """
    paths = []
    for artifact in result.artifacts:
        picture = artifact.media_type.startswith("image/")
        if kinds is not None and ("png" if picture else "coco") not in kinds:
            continue
        path = folder / artifact.filename(stem)
        if not (resume and path.exists()):
            try:
                artifact.save(path, overwrite=force)
            except FileExistsError:
                click.echo(f"Error: {path} exists; --force overwrites it", err=True)
                hint(f"The work is done and kept: `pixelkiln download {result.job.id} -o FOLDER` fetches it.")
                raise click.exceptions.Exit(FAILED) from None
        paths.append(str(path))
    return paths
