"""A job's pictures, from where they are stored to pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from pixelkiln_shared.errors import InputUnavailable, NotFound
from pixelkiln_shared.jobs import Artifact, JobSpec, Result, Status
from pixelkiln_shared.kinds import INPUTS, JobRef, Kind, ObjectRef
from pixelkiln_shared.ledger.contract import Ledger
from pixelkiln_shared.storage.contract import Storage
from pixelkiln_worker.families.contract import Pixels

Decode = Callable[[bytes], Pixels]


def wanted(lane: str) -> bool:
    """Whether the jobs of a lane work on pictures."""
    return bool(INPUTS[Kind(lane.partition(".")[0])].pictures)


def fields(spec: JobSpec) -> list[str]:
    """Return the fields of a job's input that hold a picture."""
    return [name for name in INPUTS[spec.kind].pictures if spec.input.get(name) is not None]


def fetch(spec: JobSpec, ledger: Ledger, storage: Storage, decode: Decode) -> dict[str, Pixels]:
    """Return the pictures a job works on by input field, each HWC, RGB, uint8, upright.

    Raises:
        InputUnavailable: the object or the parent's artifact is gone, or is not the one that was accepted.
        InvalidImage: the stored bytes are not a picture.
        Unavailable: Redis or the store does not answer; try again.
    """
    return {name: _fetch_one(spec.input[name], ledger, storage, decode) for name in fields(spec)}


def _fetch_one(ref: Mapping[str, Any], ledger: Ledger, storage: Storage, decode: Decode) -> Pixels:
    if "object" in ref:
        stored = ObjectRef.model_validate(ref)
        key, sha256 = stored.object, stored.sha256
    else:
        artifact = _artifact_of(JobRef.model_validate(ref), ledger)
        key, sha256 = artifact.key, artifact.sha256
    try:
        data = storage.get(key)
    except NotFound as error:
        raise InputUnavailable("the input picture is no longer in the store") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputUnavailable("the input picture is not the one that was accepted")
    return decode(data)


def _artifact_of(ref: JobRef, ledger: Ledger) -> Artifact:
    try:
        parent = ledger.get(ref.job)
    except NotFound as error:
        raise InputUnavailable(f"job {ref.job} is no longer known") from error
    if parent.status is not Status.SUCCEEDED or parent.result is None:
        raise InputUnavailable(f"job {ref.job} has no result")
    result = Result.model_validate_json(parent.result)
    for artifact in result.artifacts:
        if artifact.role is ref.role and artifact.index == ref.index:
            return artifact
    raise InputUnavailable(f"job {ref.job} has no {ref.role} number {ref.index}")
