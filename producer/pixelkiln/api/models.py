"""`/v1/models`: the catalogue, in the shape OpenAI's clients read."""

from __future__ import annotations

from fastapi import APIRouter

from pixelkiln.api.auth import CurrentCaller
from pixelkiln.api.responses import problems
from pixelkiln.api.services import Parts, Services
from pixelkiln.resources import ModelList, ModelResource
from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import NotFound, UnknownModel
from pixelkiln_shared.fleet import unavailable

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList, responses=problems())
def models(parts: Parts, caller: CurrentCaller) -> ModelList:
    """List the models, with how many live workers serve each."""
    return ModelList(data=[describe(entry, parts) for entry in parts.producer.catalogue])


@router.get("/v1/models/{model_id}", response_model=ModelResource, responses=problems())
def model(model_id: str, parts: Parts, caller: CurrentCaller) -> ModelResource:
    """Return one model."""
    try:
        return describe(parts.producer.catalogue.get(model_id), parts)
    except UnknownModel as error:
        raise NotFound("no such model") from error


def describe(entry: ModelEntry, parts: Services) -> ModelResource:
    """Return a catalogue entry as users see it."""
    workers = [info for info in parts.fleet.workers() if entry.id in info.models]
    ready = sum(info.state == "ready" and entry.id not in info.unavailable for info in workers)
    return ModelResource(
        id=entry.id,
        title=entry.title,
        description=entry.description,
        kinds=list(entry.kinds),
        default_for=list(entry.default_for),
        licence=entry.licence,
        family=entry.family,
        world=entry.world,
        sha256=dict(entry.sha256),
        defaults=dict(entry.defaults),
        options={name: list(values) for name, values in entry.options.items()},
        limits=entry.limits.model_dump(),
        classes=list(entry.classes),
        things=list(entry.things),
        vocabulary=list(entry.vocabulary),
        example_prompts=list(entry.example_prompts),
        ready_workers=ready,
        unavailable=unavailable(workers, entry.id),
    )
