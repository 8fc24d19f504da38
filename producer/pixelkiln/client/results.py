"""What a finished job gives: its files, seed and facts, for both clients."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pixelkiln.resources import ArtifactResource, JobResource
from pixelkiln_shared.kinds import Role

if TYPE_CHECKING:
    from PIL.Image import Image

    from pixelkiln.client.aio import AsyncClient
    from pixelkiln.client.sync import Client

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "application/json": ".json"}


class ArtifactFacts:
    """One file of a result. `width` and `height` are pixels, `size_bytes` and `sha256` those of the file."""

    def __init__(self, job_id: str, resource: ArtifactResource) -> None:
        self.job_id = job_id
        self.resource = resource
        self.role = resource.role
        self.index = resource.index
        self.label = resource.label
        self.score = resource.score
        self.width = resource.width
        self.height = resource.height
        self.media_type = resource.media_type
        self.size_bytes = resource.size_bytes
        self.sha256 = resource.sha256

    def as_reference(self) -> dict[str, Any]:
        """Return the image reference by which another job takes this picture as its input."""
        return {"job": self.job_id, "role": str(self.role), "index": self.index}

    def filename(self, stem: str | None = None) -> str:
        """Return a name for the file: `STEM_INDEX.png` for images, `STEM_mask_000_tree.png` for the rest."""
        stem = re.sub(r"[/\\\0]", "-", stem or self.job_id).lstrip(".")  # never a way out of a folder
        suffix = SUFFIXES.get(self.media_type, "")
        if self.role is Role.IMAGE:
            return f"{stem}_{self.index}{suffix}"
        if self.role in {Role.MASK, Role.CUTOUT}:
            label = re.sub(r"[^a-z0-9]+", "-", (self.label or "").lower()).strip("-")[:40]
            return f"{stem}_{self.role}_{self.index:03d}{'_' + label if label else ''}{suffix}"
        return f"{stem}_{self.role}{f'_{self.index}' if self.index else ''}{suffix}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.role} {self.index} of {self.job_id}>"


A = TypeVar("A", bound=ArtifactFacts)


class Artifact(ArtifactFacts):
    """One file of a result, fetched when asked for."""

    def __init__(self, client: Client, job_id: str, resource: ArtifactResource) -> None:
        super().__init__(job_id, resource)
        self._client = client

    def bytes(self) -> bytes:
        """Download the file; its SHA-256 is checked."""
        return self._client.run(self._client.flows.fetch(self.job_id, self.resource))

    def save(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Download to a file, whole or not at all.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        return write_file(Path(path), self.bytes(), overwrite=overwrite)

    def json(self) -> Any:
        """Download and parse (annotations and manifests)."""
        return json.loads(self.bytes())

    def pil(self) -> Image:
        """Download as a Pillow image; needs `pip install pillow`."""
        return open_pil(self.bytes())


class AsyncArtifact(ArtifactFacts):
    """One file of a result, fetched when asked for."""

    def __init__(self, client: AsyncClient, job_id: str, resource: ArtifactResource) -> None:
        super().__init__(job_id, resource)
        self._client = client

    async def bytes(self) -> bytes:
        """Download the file; its SHA-256 is checked."""
        return await self._client.run(self._client.flows.fetch(self.job_id, self.resource))

    async def save(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Download to a file, whole or not at all.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        return write_file(Path(path), await self.bytes(), overwrite=overwrite)

    async def json(self) -> Any:
        """Download and parse (annotations and manifests)."""
        return json.loads(await self.bytes())

    async def pil(self) -> Image:
        """Download as a Pillow image; needs `pip install pillow`."""
        return open_pil(await self.bytes())


class ResultOf(Generic[A]):
    """A finished job's files by role, each list in the order of their index."""

    def __init__(self, job: JobResource, artifacts: list[A]) -> None:
        self.job = job
        self.artifacts = artifacts
        self.seed = job.seed
        self.metrics = job.metrics
        self.detail = job.detail
        self.warnings = job.warnings

    def of(self, role: Role) -> list[A]:
        """Return the files of a role."""
        return sorted((a for a in self.artifacts if a.role is role), key=lambda a: a.index)

    @property
    def images(self) -> list[A]:
        """Return the pictures made."""
        return self.of(Role.IMAGE)

    @property
    def masks(self) -> list[A]:
        """Return the masks; `label` and `score` say what each shows."""
        return self.of(Role.MASK)

    @property
    def overlays(self) -> list[A]:
        """Return the masks drawn over the picture."""
        return self.of(Role.OVERLAY)

    @property
    def cutouts(self) -> list[A]:
        """Return the objects on transparent ground."""
        return self.of(Role.CUTOUT)

    @property
    def depths(self) -> list[A]:
        """Return the depth maps: 16-bit grey, 65535 the nearest."""
        return self.of(Role.DEPTH)

    @property
    def annotations(self) -> list[A]:
        """Return the machine-readable descriptions (COCO)."""
        return self.of(Role.ANNOTATIONS)


def write_file(path: Path, data: bytes, *, overwrite: bool) -> Path:
    """Write a file whole or not at all: a sibling first, then one atomic step.

    Raises:
        FileExistsError: it exists and `overwrite` is false.
        OSError: the folder is missing, the disk is full, ...
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def open_pil(data: bytes) -> Image:
    """Open bytes of our own server as a Pillow image."""
    import PIL.Image

    return PIL.Image.open(io.BytesIO(data))
