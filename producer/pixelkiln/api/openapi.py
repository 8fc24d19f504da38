"""The OpenAPI document: what requests look like, which their own parser checks instead of the framework's."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import models_json_schema

from pixelkiln.pipelines import MAX_STEPS
from pixelkiln.resources import Problem
from pixelkiln_shared.jobs import GroupWebhook, JobRequest
from pixelkiln_shared.kinds import INPUTS, Kind, Strict

_REFERENCE = "#/components/schemas/{model}"


def body_of(schema: str) -> dict[str, Any]:
    """Return the OpenAPI part of an operation that reads JSON of this schema."""
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=schema)}}}
    return {"requestBody": {"required": True, "content": content}}


UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP"}
                    },
                }
            }
        },
    }
}


EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["status", "progress", "preview", "artifact", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


class GroupSubmission(Strict):
    """Jobs that belong together: all are accepted or none."""

    jobs: list[dict[str, Any]] = Field(min_length=1)
    group: str | None = Field(default=None, description="Left out: a new group. Else the id of one to add to")
    webhook: GroupWebhook | None = Field(default=None, description="Whom to tell when all have ended")


class PipelineSubmission(Strict):
    """Steps of which later ones take earlier ones' pictures, written `$step.role` or `$step.role.index`."""

    steps: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_STEPS)
    webhook: GroupWebhook | None = Field(default=None, description="Whom to tell when all have ended")


def _typed(kind: Kind, suffix: str, **more: Any) -> type[BaseModel]:
    fields: dict[str, Any] = {"kind": (Literal[kind.value], ...), "input": (INPUTS[kind], ...), **more}
    return create_model(f"{kind.value.capitalize()}{suffix}", __base__=JobRequest, **fields)


_JOBS = [_typed(kind, "Job") for kind in Kind]
_STEPS = [
    _typed(
        kind, "Step", id=(str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$", description="For references"))
    )
    for kind in Kind
]


def _one_of(models: list[type[BaseModel]]) -> dict[str, Any]:
    references = {model.__name__: _REFERENCE.format(model=model.__name__) for model in models}
    mapping = dict(zip([kind.value for kind in Kind], references.values(), strict=True))
    return {
        "oneOf": [{"$ref": reference} for reference in references.values()],
        "discriminator": {"propertyName": "kind", "mapping": mapping},
    }


def _components() -> dict[str, Any]:
    models: list[type[BaseModel]] = [*_JOBS, *_STEPS, GroupSubmission, PipelineSubmission, Problem]
    pairs: list[tuple[type[BaseModel], Literal["validation"]]] = [(model, "validation") for model in models]
    _, definitions = models_json_schema(pairs, ref_template=_REFERENCE)
    schemas: dict[str, Any] = definitions["$defs"]
    schemas["JobSubmission"] = _one_of(_JOBS)
    schemas["StepSubmission"] = _one_of(_STEPS)
    schemas["GroupSubmission"]["properties"]["jobs"]["items"] = {
        "$ref": _REFERENCE.format(model="JobSubmission")
    }
    schemas["PipelineSubmission"]["properties"]["steps"]["items"] = {
        "$ref": _REFERENCE.format(model="StepSubmission")
    }
    return schemas


def install(app: FastAPI) -> None:
    """Make the app's document complete; built once, at the first request for it."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            components = made.setdefault("components", {})
            components["schemas"] = _components() | _ours_only(components.get("schemas", {}))
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"key": []}, {}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _ours_only(schemas: dict[str, Any]) -> dict[str, Any]:
    """Drop the framework's own error shape, which no operation answers with."""
    return {name: schema for name, schema in schemas.items() if "ValidationError" not in name}
