"""The manifest beside an attempt's files, as it is read again: the durable history of a job.

The worker writes it last of an attempt's files, so where it is, they all were stored.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pixelkiln_shared.jobs import SPEC_VERSION, Artifact, JobSpec, Result
from pixelkiln_shared.keys import attempt_prefix
from pixelkiln_shared.kinds import Role

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "pixelkiln-manifest/1"
_FAMILY = MANIFEST_FORMAT.rpartition("/")[0]


class _Part(BaseModel):
    """Base: what a later version adds is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ManifestFile(_Part):
    """One stored file of the attempt. `name` is its name in the attempt's folder."""

    role: Role
    index: int = Field(ge=0)
    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$")
    media_type: str
    size_bytes: int = Field(ge=0)
    sha256: str
    width: int | None = None
    height: int | None = None
    label: str | None = None
    score: float | None = None


class Batch(_Part):
    """The forward pass a job was part of."""

    size: int = 1
    index: int = 0


class Run(_Part):
    """How the result was made. The two moments are by the worker's own clock."""

    attempt: int = Field(ge=1)
    worker: str | None = None
    started_at: AwareDatetime | None = None
    completed_at: AwareDatetime | None = None
    batch: Batch = Batch()
    timings_ms: dict[str, float] = {}


class Manifest(_Part):
    """What was asked, what ran, what came out."""

    job: JobSpec
    run: Run
    detail: dict[str, Any] = {}
    warnings: list[dict[str, str]] = []
    files: list[ManifestFile]

    @property
    def prefix(self) -> str:
        """The folder of the attempt it tells of."""
        return attempt_prefix(self.job.tenant, self.job.id, self.run.attempt)

    def result(self, data: bytes) -> Result:
        """Return the result as it was published, but for the times that the manifest was too early for.

        Args:
            data: the bytes of the manifest itself, which is one of the artifacts.
        """
        artifacts = [
            Artifact(key=self.prefix + file.name, **file.model_dump(exclude={"name"})) for file in self.files
        ]
        artifacts.append(
            Artifact(
                role=Role.MANIFEST,
                index=0,
                key=self.prefix + MANIFEST_NAME,
                media_type="application/json",
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
        )
        batch = {"batch_size": float(self.run.batch.size), "batch_index": float(self.run.batch.index)}
        return Result(
            artifacts=artifacts,
            seed=self.job.input.get("seed"),
            metrics={**self.run.timings_ms, **batch},
            warnings=self.warnings,
            detail=self.detail,
        )


class NoManifest(ValueError):
    """Bytes that are not a manifest of ours."""


class OtherVersion(ValueError):
    """A manifest, or a job in it, of a version that is not read here."""


class _Head(BaseModel):
    """What tells the version, whatever else is there."""

    model_config = ConfigDict(extra="ignore")

    format: str
    job: dict[str, Any] = {}


def read_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        OtherVersion: it says that it is of a version this one does not read.
        NoManifest: anything else that is not a whole manifest.
    """
    try:
        head = _Head.model_validate_json(data)
        family = head.format.rpartition("/")[0]
        version = head.job.get("v", SPEC_VERSION)
        if family == _FAMILY and (head.format != MANIFEST_FORMAT or _newer(version)):
            raise OtherVersion(f"{head.format}, job version {version}")
        if family != _FAMILY:
            raise NoManifest("another format")
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise NoManifest("not a manifest") from error


def _newer(version: object) -> bool:
    return isinstance(version, int) and version > SPEC_VERSION
