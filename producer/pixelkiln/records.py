"""What a record holds, as far as this version reads it: one that a later version wrote hides no other."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from pixelkiln_shared.jobs import Artifact, JobSpec, Result, model_of
from pixelkiln_shared.ledger.contract import Record

_EMPTY = Result(artifacts=[])


def spec_of(record: Record) -> JobSpec:
    """Return what was asked; of a job that cannot be read, what the ledger itself knows of it."""
    try:
        return JobSpec.model_validate_json(record.spec)
    except ValidationError:
        return JobSpec(
            id=record.id,
            kind=record.kind,
            model=model_of(record.lane),
            tenant=record.tenant,
            priority=record.priority,
            input={},
        )


def result_of(record: Record) -> Result:
    """Return what came of it, empty without a result; of one that is not read whole, the files that are."""
    if not record.result:
        return _EMPTY
    try:
        return Result.model_validate_json(record.result)
    except ValidationError:
        return Result(artifacts=[known for one in _listed(record.result) if (known := _artifact(one))])


def _listed(result: str) -> list[Any]:
    try:
        found = json.loads(result)["artifacts"]
    except (ValueError, TypeError, KeyError):
        return []
    return found if isinstance(found, list) else []


def _artifact(fields: Any) -> Artifact | None:
    try:
        return Artifact.model_validate(fields)
    except ValidationError:
        return None
