"""The shipped models that paint from noise, read back by the shipped segmenter."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import families
from pixelkiln_worker.families.contract import Model, Outcome, Pixels, Task
from tests.tiny_models import CPU, Steps, segment_task
from training.world.grammar import KINDS

COUNT = 16
GROUND = {"grass", "sand", "snow", "water"}


@pytest.fixture(scope="module", params=["toyworld-gan", "toyworld-vae"])
def sampler(request: pytest.FixtureRequest) -> Model:
    entry = ModelEntry(
        id=request.param,
        family="samplers",
        kinds=(Kind.GENERATE,),
        title="",
        source=f"embedded:{request.param}",
        options={"interpolate": (True, False)},
    )
    return families.load(entry, CPU)


def pictures(sampler: Model, **fields: Any) -> list[Pixels]:
    fields = {"seed": 5, "count": COUNT, "width": 128, "height": 128} | fields
    spec = JobSpec(id="job", kind=Kind.GENERATE, model="sampler", tenant="t", input=fields)
    outcome = sampler.run([Task(spec=spec)], Steps())[0]
    assert isinstance(outcome, Outcome), outcome
    return [picture.pixels for picture in outcome.pictures]


def test_most_pictures_are_scenes_with_sky_ground_and_objects(sampler: Model) -> None:
    segmenter = families.load(Catalogue.load().get("toyworld-classes"), CPU)
    found = []
    for outcome in segmenter.run([segment_task(pixels) for pixels in pictures(sampler)], Steps()):
        assert isinstance(outcome, Outcome), outcome
        assert outcome.segmentation is not None
        labels = {segment.label for segment in outcome.segmentation.segments}
        found.append("sky" in labels and bool(labels & GROUND) and bool(labels & set(KINDS)))
    assert np.mean(found) > 0.7


def test_pictures_differ_from_each_other(sampler: Model) -> None:
    small = np.stack([pixels[::8, ::8] for pixels in pictures(sampler)]).astype(float)
    apart = [np.abs(one - two).mean() for index, one in enumerate(small) for two in small[:index]]
    assert np.mean(apart) > 30
    assert min(apart) > 5


def test_neighbours_on_a_walk_are_alike(sampler: Model) -> None:
    """In the mean: the GAN, which knows no dusk between day and night, may change the time in one step."""
    walk = np.stack(pictures(sampler, options={"interpolate": True})).astype(float)
    strangers = np.stack(pictures(sampler)).astype(float)
    steps, jumps = (
        np.mean([np.abs(one - two).mean() for one, two in pairwise(some)]) for some in (walk, strangers)
    )
    assert steps < 0.4 * jumps
