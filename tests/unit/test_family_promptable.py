"""Points, boxes and everything by a real SAM and SAM 2 with random weights; what they keep of a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_shared.storage import FolderStorage
from pixelkiln_worker.families import promptable
from pixelkiln_worker.families.contract import Outcome, Pixels, Remembers, Segmentation, Task
from pixelkiln_worker.families.promptable import PromptableSegmenter
from pixelkiln_worker.recall import Recall
from tests.tiny_models import CPU, Steps, photo_like, segformer, segment_task, segmenter_entry
from tests.tiny_networks import sam, sam2

CLICK = {"points": [{"x": 60.0, "y": 70.0}]}
BOXES = {
    "boxes": [
        {"x0": 20.0, "y0": 30.0, "x1": 100.0, "y1": 110.0},
        {"x0": 100.0, "y0": 90.0, "x1": 195.0, "y1": 118.0},
    ]
}
LOOSE = {"threshold": 0.05, "options": {"points_per_side": 4}}


@pytest.fixture(scope="module", params=["sam", "sam2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = {"sam": sam, "sam2": sam2}[request.param]
    return make(tmp_path_factory.mktemp("promptable") / request.param)


def load(folder: Path, **fields: Any) -> PromptableSegmenter:
    return promptable.load(segmenter_entry(folder, **{"defaults": {"stability": 0.0}} | fields), CPU)


@pytest.fixture
def model(folder: Path) -> PromptableSegmenter:
    return load(folder, world="toyland")


def pictures() -> list[Pixels]:
    image = photo_like()[0]
    return [image, image[:, ::-1].copy(), image[:120], 255 - image, image[::-1].copy()]


def run(model: PromptableSegmenter, *tasks: Task) -> list[Outcome]:
    outcomes = model.run(tasks, Steps())
    assert all(isinstance(found, Outcome) for found in outcomes), outcomes
    return [found for found in outcomes if isinstance(found, Outcome)]


def masks(found: Outcome) -> Segmentation:
    assert found.segmentation is not None
    return found.segmentation


@contextmanager
def counted(model: PromptableSegmenter) -> Iterator[list[int]]:
    """Count the pictures of each encoder pass."""
    passes: list[int] = []
    hook = model.sam.network.net.vision_encoder.register_forward_pre_hook(
        lambda module, arguments, named: passes.append(
            len(arguments[0] if arguments else named["pixel_values"])
        ),
        with_kwargs=True,
    )
    yield passes
    hook.remove()


def test_a_batch_gives_the_masks_of_single_runs(model: PromptableSegmenter, folder: Path) -> None:
    asked: list[dict[str, Any]] = [CLICK, BOXES, BOXES | CLICK, LOOSE, CLICK]
    tasks = [segment_task(image, **fields) for image, fields in zip(pictures(), asked, strict=True)]
    together, other = run(model, *tasks), load(folder)
    for task, found in zip(tasks, together, strict=True):
        [alone] = run(other, task)
        assert task.image is not None
        assert masks(found).ids.shape == task.image.shape[:2]
        assert (masks(found).ids != masks(alone).ids).mean() < 0.002
        labels = [[segment.label for segment in masks(one).segments] for one in (found, alone)]
        assert labels[0] == labels[1]


def test_points_without_boxes_are_one_object(model: PromptableSegmenter) -> None:
    points = [{"x": 60.0, "y": 70.0}, {"x": 64.0, "y": 60.0}, {"x": 140.0, "y": 20.0, "positive": False}]
    [found] = run(model, segment_task(pictures()[0], points=points))
    [segment] = masks(found).segments
    assert (segment.id, segment.label, segment.category) == (1, "object 1", 1)
    assert segment.score is not None
    assert 0 <= segment.score <= 1
    assert "toyland" in found.detail["note"]


def test_each_box_is_an_object_named_by_its_place(model: PromptableSegmenter) -> None:
    [found] = run(model, segment_task(pictures()[0], **BOXES))
    assert sorted((s.category, s.label) for s in masks(found).segments) == [(1, "object 1"), (2, "object 2")]


def test_a_point_in_no_box_is_one_more_object(
    model: PromptableSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    propose = model.sam.propose

    def noted(encoded: Any, objects: Any) -> Any:
        seen.extend(objects)
        return propose(encoded, objects)

    monkeypatch.setattr(model.sam, "propose", noted)
    points = [{"x": 60.0, "y": 70.0}, {"x": 150.0, "y": 20.0}, {"x": 21.0, "y": 31.0, "positive": False}]
    run(model, segment_task(pictures()[0], points=points, **BOXES))
    assert [(marks.box is not None, len(marks.points)) for marks in seen] == [
        (True, 2),
        (True, 0),
        (False, 1),
    ]


def test_a_click_decides_what_is_found(model: PromptableSegmenter) -> None:
    image = pictures()[0]
    one, other = run(
        model, segment_task(image, **CLICK), segment_task(image, points=[{"x": 150.0, "y": 180.0}])
    )
    assert (masks(one).ids != masks(other).ids).any()


def test_objects_below_the_threshold_are_dropped_and_named(model: PromptableSegmenter) -> None:
    [found] = run(model, segment_task(pictures()[0], **BOXES))
    scores = {segment.category: segment.score or 0.0 for segment in masks(found).segments}
    worse = min(scores, key=lambda category: scores[category])
    [kept] = run(model, segment_task(pictures()[0], threshold=scores[worse] + 1e-3, **BOXES))
    assert [segment.category for segment in masks(kept).segments] == [3 - worse]
    [warning] = kept.warnings
    assert warning["code"] == "nothing_found"
    assert f"object {worse} was not found: its predicted IoU" in warning["message"]


def test_everything_is_numbered_by_area(model: PromptableSegmenter) -> None:
    [found] = run(model, segment_task(pictures()[0], **LOOSE))
    segments = masks(found).segments
    assert segments
    assert [segment.label for segment in segments] == [f"object {n}" for n in range(1, len(segments) + 1)]
    areas = np.bincount(masks(found).ids.ravel(), minlength=len(segments) + 1)[1:]
    assert list(areas) == sorted(areas, reverse=True)


def test_nothing_sure_enough_is_said(model: PromptableSegmenter) -> None:
    [found] = run(model, segment_task(pictures()[0], threshold=1.0, options={"points_per_side": 2}))
    assert masks(found).segments == ()
    assert [warning["code"] for warning in found.warnings] == ["nothing_found"]


def test_the_grid_comes_from_the_job_else_from_the_catalogue(folder: Path) -> None:
    model = load(folder, defaults={"points_per_side": 3, "threshold": 0.4, "stability": 0.6})
    rules = model._rules(segment_task(pictures()[0]))
    assert (rules.points_per_side, rules.threshold, rules.stability) == (3, 0.4, 0.6)
    asked = model._rules(segment_task(pictures()[0], options={"points_per_side": 5}, threshold=0.0))
    assert (asked.points_per_side, asked.threshold) == (5, 0.0)
    usual = load(folder, defaults={})._rules(segment_task(pictures()[0]))
    assert (usual.points_per_side, usual.threshold, usual.stability, usual.most) == (16, 0.88, 0.95, 255)


def test_names_mean_nothing_to_it(model: PromptableSegmenter) -> None:
    [found] = run(model, segment_task(pictures()[0], labels=["house"], **CLICK))
    assert [warning["code"] for warning in found.warnings] == ["labels_ignored"]


@pytest.mark.parametrize(
    "fields",
    [
        {"points": [{"x": 200.0, "y": 5.0}]},
        {"boxes": [{"x0": 10.0, "y0": 300.0, "x1": 20.0, "y1": 310.0}]},
        {"points": [{"x": 20.0, "y": 5.0, "positive": False}]},
    ],
)
def test_marks_that_show_nothing_fail_their_job_alone(
    model: PromptableSegmenter, fields: dict[str, Any]
) -> None:
    bad, good = model.run(
        [segment_task(pictures()[0], **fields), segment_task(pictures()[0], **CLICK)], Steps()
    )
    assert isinstance(bad, InvalidInput)
    assert bad.code == "invalid_region"
    assert isinstance(good, Outcome)


def test_pictures_beyond_the_working_size_come_back_whole(model: PromptableSegmenter) -> None:
    image = photo_like(1_300)[0][:, :700]
    assert masks(run(model, segment_task(image, **CLICK))[0]).ids.shape == (1_300, 700)


# ------------------------------------------------------------------------------------------------ memory


def test_the_second_click_costs_no_encoder_pass(model: PromptableSegmenter) -> None:
    image = pictures()[0]
    with counted(model) as passes:
        [first] = run(model, segment_task(image, **CLICK))
        [second] = run(model, segment_task(image, **BOXES))
        [again] = run(model, segment_task(image, **CLICK))
    assert passes == [1]
    assert first.memory is not None
    assert (second.memory, again.memory) == (None, None)
    assert np.array_equal(masks(first).ids, masks(again).ids)


def test_another_worker_reads_what_the_first_kept(
    model: PromptableSegmenter, folder: Path, tmp_path: Path
) -> None:
    storage, image = FolderStorage(tmp_path / "objects", secret=b"s"), pictures()[0]
    task = segment_task(image, **CLICK)
    [first] = run(model, Recall(storage).prepare(task, model))
    Recall(storage).keep("t", first.memory)
    other = load(folder)
    with counted(other) as passes:
        [second] = run(other, Recall(storage).prepare(task, other))
        [third] = run(other, Recall(storage).prepare(segment_task(pictures()[1], **CLICK), other))
    assert passes == [1]
    assert second.memory is None
    assert third.memory is not None
    assert np.array_equal(masks(first).ids, masks(second).ids)
    assert masks(first).segments == masks(second).segments


def test_a_picture_twice_in_a_batch_is_encoded_once(model: PromptableSegmenter) -> None:
    one, two = pictures()[:2]
    with counted(model) as passes:
        run(model, *(segment_task(image, **CLICK) for image in (one, two, one, one)))
    assert passes == [2]


def test_a_damaged_memory_is_made_anew(model: PromptableSegmenter, folder: Path) -> None:
    task = segment_task(pictures()[0], **CLICK)
    [first] = run(model, task)
    assert first.memory is not None
    assert first.memory.data is not None
    other = load(folder)
    with counted(other) as passes:
        [second] = run(other, replace(task, memory=replace(first.memory, data=first.memory.data[:-8])))
    assert passes == [1]
    assert second.memory == first.memory


def test_a_memory_of_other_weights_is_not_believed(model: PromptableSegmenter, folder: Path) -> None:
    task = segment_task(pictures()[0], **CLICK)
    [first] = run(model, task)
    assert first.memory is not None
    foreign, other = replace(first.memory, key=f"{'0' * 32}-{first.memory.key[33:]}"), load(folder)
    with counted(other) as passes:
        [second] = run(other, replace(task, memory=foreign))
    assert second.memory == first.memory
    assert passes == [1]


def test_another_tenant_does_not_profit(model: PromptableSegmenter) -> None:
    assert isinstance(model, Remembers)
    task = segment_task(pictures()[0], **CLICK)
    stranger = replace(task, spec=task.spec.model_copy(update={"tenant": "stranger"}))
    with counted(model) as passes:
        run(model, task)
        run(model, stranger)
    assert passes == [1, 1]


def test_a_closed_model_holds_nothing(model: PromptableSegmenter) -> None:
    task = segment_task(pictures()[0], **CLICK)
    run(model, task)
    key = model.memory_key(task)
    assert model.at_hand(key)
    model.close()
    assert model.memory_key(task) == key
    assert not model.at_hand(key)


# ------------------------------------------------------------------------------------------------ folders


@pytest.fixture(params=[sam, sam2])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder: Path = request.param(tmp_path / "fresh")
    return folder


def change(folder: Path, part: str, to: float | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    names: Sequence[str] = [name for name in tensors if part in name]
    assert names
    for name in names:
        if to is None:
            tensors.pop(name)
        else:
            tensors[name][...] = to
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "to", "why"),
    [
        ("iou_prediction_head", None, "incomplete"),
        ("neck", np.nan, "not finite"),
        ("iou_prediction_head", np.inf, "not finite"),
    ],
)
def test_bad_weights_are_refused(fresh: Path, part: str, to: float | None, why: str) -> None:
    change(fresh, part, to)
    with pytest.raises(ModelUnavailable, match=why):
        load(fresh)


def test_a_cut_file_and_a_missing_processor_are_refused(fresh: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        (fresh / name).unlink(missing_ok=True)
    with pytest.raises(ModelUnavailable, match="model tiny"):
        load(fresh)
    path = fresh / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelUnavailable, match="cut short"):
        load(fresh)


def test_another_kind_of_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="model tiny"):
        load(segformer(tmp_path / "segformer"))


def test_pictures_that_give_no_numbers_fail_alone(
    model: PromptableSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = model.sam._levels

    def spoiled(images: Sequence[Pixels]) -> list[Any]:
        found = levels(images)
        return [tuple(torch.full_like(level, np.inf) for level in found[0]), *found[1:]]

    monkeypatch.setattr(model.sam, "_levels", spoiled)
    bad, good = model.run([segment_task(image, **CLICK) for image in pictures()[:2]], Steps())
    assert isinstance(bad, ModelUnavailable)
    assert isinstance(good, Outcome)
    assert not model.at_hand(model.memory_key(segment_task(pictures()[0])))
