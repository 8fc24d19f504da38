"""Intake of the kinds that work on pictures: edit, upscale, cutout, depth, stereo, classify, text prompts."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelkiln.intake import fitted
from pixelkiln.producer import Producer
from pixelkiln_shared import keys
from pixelkiln_shared.catalogue import Catalogue, Limits, ModelEntry
from pixelkiln_shared.errors import InvalidInput, StorageUnavailable
from pixelkiln_shared.jobs import JobSpec, Status
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage.contract import StoredObject
from pixelkiln_shared.testing.bells import MemoryBells
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_shared.testing.storage import MemoryStorage


def entry(name: str, kinds: str, **fields: Any) -> ModelEntry:
    listed = tuple(Kind(kind) for kind in kinds.split())
    return ModelEntry(id=name, family="stub", title=name, kinds=listed, **{"default_for": listed, **fields})


ENTRIES = [
    entry("painter", "generate edit", world="inkland", defaults={"steps": 4, "strength": 0.5}),
    entry("dreamer", "generate", prompt="ignored", default_for=()),
    entry("optional", "generate", prompt="optional", options={"tempo": ("slow", "fast")}, default_for=()),
    entry("larger", "upscale", prompt="optional", defaults={"scale": 4}),
    entry("classes", "segment", world="inkland", classes=("house", "tree")),
    entry("phrases", "segment", world="inkland", phrases=True),
    entry("clicks", "segment", world="inkland", marks="optional", default_for=("segment",)),
    entry("marked", "segment", marks="needed"),
    entry("anything", "segment"),
    entry("inkdepth", "depth stereo", world="inkland"),
    entry("names", "classify"),
    entry("zero-shot", "classify", phrases=True, default_for=()),
    entry("cutter", "cutout"),
]


class OneFileStorage(MemoryStorage):
    """A store that takes one object and then goes away."""

    def put(self, key: str, data: bytes | Path, *, media_type: str) -> StoredObject:
        if list(self.list("")):
            raise StorageUnavailable("gone")
        return super().put(key, data, media_type=media_type)


def producer_over(storage: MemoryStorage) -> Producer:
    catalogue = Catalogue({one.id: one for one in ENTRIES})
    return Producer(
        Settings(max_queue=100),
        ledger=MemoryLedger(),
        storage=storage,
        bells=MemoryBells(),
        catalogue=catalogue,
    )


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def producer(storage: MemoryStorage) -> Producer:
    return producer_over(storage)


def picture(width: int = 300, height: int = 200) -> dict[str, str]:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return {"base64": base64.b64encode(file.getvalue()).decode()}


def submit(producer: Producer, kind: str, model: str | None = None, **fields: Any) -> JobSpec:
    record = producer.submit({"kind": kind, "model": model, "input": fields})
    return JobSpec.model_validate_json(record.spec)


def codes(spec: JobSpec) -> list[str]:
    return [warning["code"] for warning in spec.warnings]


def drawn(producer: Producer) -> dict[str, str]:
    return {"job": submit(producer, "generate", "painter", prompt="a house").id}


# ------------------------------------------------------------------------------------------------ edit


def test_an_edit_takes_its_size_from_the_picture_and_the_rest_from_the_model(producer: Producer) -> None:
    spec = submit(producer, "edit", image=picture(300, 200), prompt="at night")
    assert (spec.input["width"], spec.input["height"]) == (304, 200)
    assert (spec.input["steps"], spec.input["strength"]) == (4, 0.5)
    assert 0 <= spec.input["seed"] < 2**32
    assert spec.input["image"]["width"] == 300


def test_a_masked_edit_redraws_all_that_is_marked(producer: Producer) -> None:
    spec = submit(producer, "edit", image=picture(), mask=picture(), prompt="a tree")
    assert spec.input["strength"] == 1.0
    assert spec.input["image"]["object"] == keys.input_key("default", spec.id, "image")
    assert spec.input["mask"]["object"] == keys.input_key("default", spec.id, "mask")


def test_edits_of_one_shape_share_a_batch_and_others_do_not(producer: Producer) -> None:
    same = [submit(producer, "edit", image=picture(), prompt=prompt).batch_key for prompt in ("a", "b")]
    other = submit(producer, "edit", image=picture(), prompt="a", strength=0.9).batch_key
    assert same[0] == same[1] != other


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"mask": picture(10, 10), "prompt": "a"}, "mask_mismatch", "/input/mask"),
        ({}, "missing_field", "/input/prompt"),
        ({"prompt": "a", "strength": 0}, "out_of_range", "/input/strength"),
        ({"prompt": "a", "mask": "white"}, "invalid_type", "/input/mask"),
        ({"prompt": "a", "mask": {"file": "x"}}, "invalid_reference", "/input/mask"),
        ({"prompt": "a", "width": 12}, "invalid_size", "/input/width"),
    ],
)
def test_a_wrong_edit_names_its_field(
    producer: Producer, fields: dict[str, Any], code: str, pointer: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        submit(producer, "edit", image=picture(), **fields)
    assert (caught.value.code, caught.value.pointer) == (code, pointer)


def test_an_edit_waits_for_both_jobs_it_takes_pictures_from(producer: Producer) -> None:
    scene = drawn(producer)
    masks = submit(producer, "segment", image=scene)
    mask = {"job": masks.id, "role": "mask", "index": 0}
    record = producer.submit({"kind": "edit", "input": {"image": scene, "mask": mask, "prompt": "a tree"}})
    assert record.status is Status.BLOCKED


def test_nothing_stays_behind_when_the_second_picture_cannot_be_stored() -> None:
    storage = OneFileStorage()
    with pytest.raises(StorageUnavailable):
        submit(producer_over(storage), "edit", image=picture(), mask=picture(), prompt="a")
    assert list(storage.list("")) == []


@given(
    width=st.integers(1, 9_000),
    height=st.integers(1, 9_000),
    low=st.integers(8, 128),
    high=st.integers(136, 2_048),
    share=st.floats(0.1, 1),
)
def test_a_fitted_size_is_always_within_the_limits(
    width: int, height: int, low: int, high: int, share: float
) -> None:
    most = max(int(high * high * share), (low + 8) ** 2)
    limits = Limits(min_side=low, max_side=high, max_pixels=most)
    made = fitted(width, height, limits)
    assert all(side % 8 == 0 and low <= side <= high for side in made)
    assert made[0] * made[1] <= most or min(made) < low + 8


def test_a_fitted_size_keeps_the_proportions() -> None:
    limits = Limits(min_side=64, max_side=256, max_pixels=65_536)
    assert fitted(128, 128, limits) == (128, 128)
    assert fitted(4_000, 2_000, limits) == (256, 128)
    assert fitted(32, 32, limits) == (64, 64)


# ------------------------------------------------------------------------------------------------ prompts


def test_a_model_that_draws_from_noise_needs_no_prompt(producer: Producer) -> None:
    spec = submit(producer, "generate", "dreamer")
    assert spec.input["prompt"] is None
    assert spec.warnings == []


def test_a_prompt_nobody_reads_is_warned_of(producer: Producer) -> None:
    assert codes(submit(producer, "generate", "dreamer", prompt="a house")) == ["ignored_field"]


def test_an_upscale_takes_the_models_own_scale(producer: Producer) -> None:
    assert submit(producer, "upscale", image=picture()).input["scale"] == 4


# ------------------------------------------------------------------------------------------------ choosing


@pytest.mark.parametrize(
    ("fields", "model"),
    [
        ({}, "classes"),
        ({"labels": ["House"]}, "classes"),
        ({"labels": ["the red house"]}, "phrases"),
        ({"points": [{"x": 1, "y": 2}]}, "clicks"),
        ({"boxes": [{"x0": 1, "y0": 1, "x1": 9, "y1": 9}]}, "clicks"),
    ],
)
def test_a_drawn_scene_goes_to_the_model_that_answers(
    producer: Producer, fields: dict[str, Any], model: str
) -> None:
    assert submit(producer, "segment", image=drawn(producer), **fields).model == model


@pytest.mark.parametrize(
    ("fields", "model"),
    [({}, "anything"), ({"labels": ["sky"]}, "anything"), ({"points": [{"x": 1, "y": 2}]}, "marked")],
)
def test_a_photograph_never_goes_to_a_closed_world_while_another_model_answers(
    producer: Producer, fields: dict[str, Any], model: str
) -> None:
    assert submit(producer, "segment", image=picture(), **fields).model == model


def test_a_closed_world_that_had_to_be_chosen_is_warned_of(producer: Producer) -> None:
    assert codes(submit(producer, "depth", image=picture())) == ["closed_world_default"]
    assert codes(submit(producer, "depth", image=drawn(producer))) == []
    assert codes(submit(producer, "depth", "inkdepth", image=picture())) == []


def test_phrases_are_needed_where_labels_are_phrases(producer: Producer) -> None:
    for kind, model in (("segment", "phrases"), ("classify", "zero-shot")):
        with pytest.raises(InvalidInput) as caught:
            submit(producer, kind, model, image=picture())
        assert (caught.value.code, caught.value.pointer) == ("missing_field", "/input/labels")


def test_the_picture_a_cutout_was_made_of_can_be_taken_again(producer: Producer) -> None:
    first = submit(producer, "cutout", image=picture(100, 80))
    again = submit(producer, "depth", image={"job": first.id})
    assert (again.input["image"]["width"], again.input["image"]["height"]) == (100, 80)
    assert again.input["image"]["object"] != first.input["image"]["object"]


def test_a_job_can_be_run_again_on_the_pictures_it_was_given(producer: Producer) -> None:
    first = submit(producer, "edit", image=picture(100, 80), mask=picture(100, 80), prompt="a")
    given: dict[str, Any] = {name: {"job": first.id, "input": name} for name in ("image", "mask")}
    again = submit(producer, "edit", prompt="a", **given)
    assert again.input["mask"]["sha256"] == first.input["mask"]["sha256"]
    with pytest.raises(InvalidInput) as caught:
        submit(producer, "edit", prompt="a", image={"job": first.id, "input": "depth"})
    assert caught.value.pointer == "/input/image/input"


def test_a_picture_that_a_kind_never_makes_is_refused(producer: Producer) -> None:
    first = submit(producer, "cutout", image=picture())
    with pytest.raises(InvalidInput) as caught:
        submit(producer, "depth", image={"job": first.id, "role": "overlay"})
    assert caught.value.pointer == "/input/image/role"


def test_a_refused_option_says_what_would_do(producer: Producer) -> None:
    with pytest.raises(InvalidInput, match="tempo of optional is one of slow, fast"):
        submit(producer, "generate", "optional", options={"tempo": "medium"})
    with pytest.raises(InvalidInput, match="optional has no such option; it has tempo"):
        submit(producer, "generate", "optional", options={"temper": "slow"})
    with pytest.raises(InvalidInput, match=r"dreamer has no such option$"):
        submit(producer, "generate", "dreamer", options={"tempo": "slow"})


def test_a_box_in_another_form_is_refused_in_words_of_json(producer: Producer) -> None:
    with pytest.raises(InvalidInput, match="Input should be an object") as caught:
        submit(producer, "segment", "clicks", image=picture(), boxes=[[1, 1, 9, 9]])
    assert caught.value.detail["errors"][0]["pointer"] == "/input/boxes/0"
