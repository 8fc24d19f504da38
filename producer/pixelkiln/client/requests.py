"""The bodies of requests, built from arguments and from flat rows. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from pixelkiln_shared.jobs import JobRequest
from pixelkiln_shared.kinds import INPUTS, Kind

ENVELOPE = frozenset(JobRequest.model_fields) - {"input"}


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that were given: what is None is left to the server's defaults."""
    return {name: value for name, value in fields.items() if value is not None}


def job_request(kind: Kind, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Sort flat fields into an envelope and its input; None means "not given".

    >>> job_request(Kind.GENERATE, {"prompt": "a red house", "seed": 7, "model": "toyworld"})
    {'kind': 'generate', 'model': 'toyworld', 'input': {'prompt': 'a red house', 'seed': 7}}
    """
    given = without_none(fields)
    tagged = isinstance(given.get("labels"), Mapping)  # a list under this name is the classes to keep
    envelope_fields = ENVELOPE if tagged else ENVELOPE - {"labels"}
    envelope = {name: given.pop(name) for name in list(given) if name in envelope_fields}
    return {"kind": str(kind), **envelope, "input": given}


def row_request(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row into a request: an envelope stays as it is, a flat row is sorted.

    Unless it names its `kind`, a flat row with an `image` and a `prompt` is an `edit` job, one with an
    `image` alone a `segment` job, any other a `generate` job.
    """
    if isinstance(row.get("input"), Mapping):
        return {"kind": "generate", **row}
    fields = dict(row)
    return job_request(fields.pop("kind", None) or _kind_of(fields), fields)


def _kind_of(fields: Mapping[str, Any]) -> Kind:
    if fields.get("image") is None:
        return Kind.GENERATE
    return Kind.SEGMENT if fields.get("prompt") is None else Kind.EDIT


def known_fields() -> frozenset[str]:
    """Return every name a flat row may use."""
    inputs = (name for model in INPUTS.values() for name in model.model_fields)
    return ENVELOPE | frozenset(inputs)


@cache
def text_fields() -> frozenset[str]:
    """Return those names of a flat row whose values are text, whatever they look like."""
    models: tuple[type[BaseModel], ...] = (JobRequest, *INPUTS.values())
    fields = [field for model in models for field in model.model_fields.items()]
    others = (bool, int, float, list, dict)
    mixed = {
        name
        for name, field in fields
        if any(
            kind in others or get_origin(kind) in others
            for kind in (field.annotation, *get_args(field.annotation))
        )
    }
    return known_fields() - mixed
