"""The models that ship with Pixelkiln, on scenes whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from bench import embedded
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import families, weights
from pixelkiln_worker.families.contract import Model, Outcome, Pixels, Task
from tests.tiny_models import CPU, Steps, segment_task
from training.world import CLASSES, render, sample_spec

CATALOGUE = Catalogue.load()


@pytest.fixture(scope="module")
def generator() -> Model:
    return families.load(CATALOGUE.get("toyworld"), CPU)


@pytest.fixture(scope="module")
def segmenter() -> Model:
    return families.load(CATALOGUE.get("toyworld-classes"), CPU)


def picture(generator: Model, prompt: str, steps: int = 8, **images: Pixels) -> Pixels:
    fields = dict(CATALOGUE.get("toyworld").defaults) | {
        "prompt": prompt,
        "seed": 1,
        "steps": steps,
        "count": 1,
    }
    if "mask" in images:
        fields["strength"] = fields["mask_strength"]
    kind = Kind.EDIT if images else Kind.GENERATE
    spec = JobSpec(id="job", kind=kind, model="toyworld", tenant="t", input=fields)
    outcome = generator.run([Task(spec=spec, images=images)], Steps())[0]
    assert isinstance(outcome, Outcome), outcome
    return outcome.pictures[0].pixels


def classes_of(segmenter: Model, image: Pixels) -> np.ndarray:
    """Return the class name of each pixel, HW."""
    outcome = segmenter.run([segment_task(image)], Steps())[0]
    assert isinstance(outcome, Outcome), outcome
    assert outcome.segmentation is not None
    names = np.array(["", *(segment.label for segment in outcome.segmentation.segments)])
    return names[outcome.segmentation.ids]


def test_the_segmenter_reads_drawn_scenes(segmenter: Model) -> None:
    rng = np.random.default_rng(11)
    scenes = [render(sample_spec(rng), rng) for _ in range(6)]
    outcomes = segmenter.run([segment_task(scene.image) for scene in scenes], Steps())
    right = []
    for scene, outcome in zip(scenes, outcomes, strict=True):
        assert isinstance(outcome, Outcome), outcome
        assert outcome.segmentation is not None
        category = np.array([0, *(segment.category for segment in outcome.segmentation.segments)])
        assert all(
            segment.label == CLASSES[segment.category - 1] for segment in outcome.segmentation.segments
        )
        right.append((category[outcome.segmentation.ids] == scene.classes + 1).mean())
    assert np.mean(right) > 0.9


def test_the_generator_makes_night_darker_than_day(generator: Model) -> None:
    day, night = (picture(generator, f"a red house in the meadow, {time}") for time in ("day", "night"))
    assert day.shape == night.shape == (128, 128, 3)
    assert day[:40].mean() > night[:40].mean() + 40


def test_an_edit_changes_the_hour_and_leaves_the_things_where_they_are(
    generator: Model, segmenter: Model
) -> None:
    day = picture(generator, "a red house on the left in a meadow by day", steps=14)
    night = picture(generator, "a red house on the left in the snow at night", steps=14, image=day)
    assert day[:30].mean() > night[:30].mean() + 40
    before, after = (classes_of(segmenter, one) == "house" for one in (day, night))
    assert (before & after).sum() > 0.6 * (before | after).sum()


def test_inpainting_draws_a_whole_thing_into_the_mask(generator: Model, segmenter: Model) -> None:
    """What the prototype did not: it filled the mask with a yellow rectangle."""
    scene = picture(generator, "a red house on the left in a meadow by day", steps=14)
    mask = np.zeros_like(scene)
    mask[2:66, 58:126] = 255
    made = picture(generator, "a yellow balloon", steps=14, image=scene, mask=mask)
    outside = mask.max(axis=2) == 0
    assert np.array_equal(made[outside], scene[outside])
    balloon = classes_of(segmenter, made) == "balloon"
    assert 300 < (balloon & ~outside).sum() < 0.6 * (~outside).sum()
    red, green, blue = np.median(made[balloon], axis=0)
    assert min(red, green) > blue + 40
    sky = (classes_of(segmenter, made) == "sky") & ~outside
    assert sky.sum() > 300  # it stands in the sky that was there before


def test_the_catalogue_names_the_words_the_shipped_tokenizer_knows() -> None:
    entry = CATALOGUE.get("toyworld")
    tokenizer = AutoTokenizer.from_pretrained(weights.resolve(entry).folder / "tokenizer")

    assert set(entry.vocabulary) <= set(tokenizer.get_vocab())
    meant = {synonym: word for word, synonyms in entry.synonyms.items() for synonym in synonyms}
    assert {s: tokenizer.tokenize(s) for s in meant} == {s: tokenizer.tokenize(w) for s, w in meant.items()}


def test_the_table_of_results_is_what_the_models_measured() -> None:
    rows = embedded.table(Path("worker/pixelkiln_worker/embedded"))
    assert json.loads(embedded.TABLE.read_text("utf-8")) == rows
