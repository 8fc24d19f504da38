"""Many jobs as one COCO data set: `images/` and `annotations.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelkiln.cli.faults import FAILED
from pixelkiln_shared.kinds import Role

if TYPE_CHECKING:
    from pixelkiln.client import Artifact, Client, Job


class DataSet:
    """Collects pictures and annotations; the file is written once, by `finish`.

    A picture that a job of ours made is saved beside the annotations; one that was uploaded stays where it
    is, and is called what the label `file` of its job says.
    """

    def __init__(self, folder: Path, *, force: bool, resume: bool) -> None:
        self._folder = folder
        self._path = folder / "annotations.json"
        self._force = force
        self._resume = resume
        self._images: dict[str, dict[str, Any]] = {}
        self._categories: dict[str, int] = {}
        self._annotations: list[dict[str, Any]] = []
        if self._path.exists() and not (force or resume):
            self._refuse(self._path)
        (folder / "images").mkdir(exist_ok=True)

    def add(self, client: Client, job: Job) -> None:
        """Add what a finished job made."""
        result = job.result()
        for artifact in result.images:
            self._own_image(artifact)
        for described in result.annotations:
            document = described.json()
            size = document["images"][0]
            self._annotate(document, self._source(client, job, size["width"], size["height"]))

    def finish(self) -> Path:
        """Write the annotations and return their path."""
        from pixelkiln.client.results import write_file

        document = {
            "info": {"description": "Made with Pixelkiln"},
            "licenses": [],
            "images": list(self._images.values()),
            "categories": [
                {"id": number, "name": name, "supercategory": ""} for name, number in self._categories.items()
            ],
            "annotations": self._annotations,
        }
        data = json.dumps(document, separators=(",", ":")).encode()
        return write_file(self._path, data, overwrite=self._force or self._resume)

    def _annotate(self, document: dict[str, Any], image_id: int) -> None:
        names = {category["id"]: category["name"] for category in document["categories"]}
        for annotation in document["annotations"]:
            name = names[annotation["category_id"]]
            number = self._categories.setdefault(name, len(self._categories) + 1)
            self._annotations.append(
                {
                    **annotation,
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": number,
                }
            )

    def _source(self, client: Client, job: Job, width: int, height: int) -> int:
        reference = job.resource.input.get("image") or {}
        if "job" in reference:
            made = client.job(reference["job"]).result()
            role, index = Role(reference.get("role", Role.IMAGE)), reference.get("index", 0)
            return self._own_image(next(a for a in made.of(role) if a.index == index))
        return self._image(job.resource.labels.get("file") or f"{job.id}.png", width, height)

    def _own_image(self, artifact: Artifact) -> int:
        name = artifact.filename()
        if name not in self._images:
            path = self._folder / "images" / name
            if not (self._resume and path.exists()):
                try:
                    artifact.save(path, overwrite=self._force)
                except FileExistsError:
                    self._refuse(path)
        return self._image(name, artifact.width or 0, artifact.height or 0)

    def _image(self, name: str, width: int, height: int) -> int:
        known = self._images.setdefault(
            name, {"id": len(self._images) + 1, "file_name": name, "width": width, "height": height}
        )
        return int(known["id"])

    def _refuse(self, path: Path) -> None:
        click.echo(f"Error: {path} exists; --force overwrites, --resume keeps it", err=True)
        raise click.exceptions.Exit(FAILED)
