"""Semantic segmentation by a real SegFormer with random weights, and instances from class maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_worker.families import segmentation
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation
from pixelkiln_worker.families.segmentation import ClassTable, SemanticSegmenter, instances
from tests.tiny_models import CPU, Steps, photo_like, segformer, segment_task, segmenter_entry
from tests.tiny_segmenters import beit, dpt_semantic, mobilenet_deeplab, upernet

NAMES = ("sky", "grass", "house")
TABLE = ClassTable(names=NAMES, things=frozenset({2}), nothing=frozenset())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segformer(tmp_path_factory.mktemp("segmenter") / "segformer", NAMES)


@pytest.fixture(scope="module")
def model(folder: Path) -> SemanticSegmenter:
    return segmentation.load(segmenter_entry(folder, things=("house",), world="toyland"), CPU)


def pictures() -> list[Pixels]:
    image = photo_like()[0]
    return [image, image[:, ::-1].copy(), image[:120], image[:64, :64], 255 - image, image[::-1].copy()]


def outcome(found: Outcome | Exception) -> Outcome:
    assert isinstance(found, Outcome), found
    return found


def masks(found: Outcome) -> Segmentation:
    assert found.segmentation is not None
    return found.segmentation


def test_a_batch_gives_the_masks_of_single_runs(model: SemanticSegmenter) -> None:
    watch = Steps()
    together = [outcome(found) for found in model.run([segment_task(image) for image in pictures()], watch)]
    assert watch.seen == [(1, 2), (2, 2)]  # six pictures, four in a pass
    for image, found in zip(pictures(), together, strict=True):
        alone = masks(outcome(model.run([segment_task(image)], Steps())[0]))
        assert masks(found).ids.shape == image.shape[:2]
        assert (masks(found).ids != alone.ids).mean() < 0.001
        for one, two in zip(masks(found).segments, alone.segments, strict=True):
            assert (one.id, one.label, one.category) == (two.id, two.label, two.category)
            assert one.score == pytest.approx(two.score, abs=2e-3)


def test_segments_are_ordered_by_area_and_named(model: SemanticSegmenter) -> None:
    found = masks(outcome(model.run([segment_task(pictures()[0])], Steps())[0]))
    areas = np.bincount(found.ids.ravel(), minlength=len(found.segments) + 1)
    assert list(areas[1:]) == sorted(areas[1:], reverse=True)
    assert areas[0] == 0
    for segment in found.segments:
        assert segment.label == NAMES[segment.category - 1]
        assert segment.score is not None
        assert 0 < segment.score <= 1


def test_labels_keep_only_these_classes(model: SemanticSegmenter) -> None:
    image = pictures()[0]
    everything = masks(outcome(model.run([segment_task(image)], Steps())[0]))
    wanted = everything.segments[0].label
    found = outcome(model.run([segment_task(image, labels=[wanted.upper(), "unicorn"])], Steps())[0])
    assert {segment.label for segment in masks(found).segments} == {wanted}
    assert [segment.id for segment in masks(found).segments] == list(range(1, len(masks(found).segments) + 1))
    (warning,) = found.warnings
    assert warning["code"] == "unknown_label"
    assert "'unicorn'; it knows sky, grass, house" in warning["message"]


def test_the_result_says_which_world_the_model_knows(model: SemanticSegmenter) -> None:
    found = outcome(model.run([segment_task(pictures()[0])], Steps())[0])
    assert "toyland" in found.detail["note"]


def test_a_job_without_a_picture_fails_alone(model: SemanticSegmenter) -> None:
    found = model.run([segment_task(None), segment_task(pictures()[0])], Steps())
    assert isinstance(found[0], InvalidInput)
    assert isinstance(found[1], Outcome)


def test_pictures_beyond_the_working_size_come_back_whole(model: SemanticSegmenter) -> None:
    image = photo_like(1_300)[0][:, :700]
    assert masks(outcome(model.run([segment_task(image)], Steps())[0])).ids.shape == (1_300, 700)


# ------------------------------------------------------------------------------------------------ instances


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Sky over grass, two houses, one of them with a pinhole, and a speck of house in the sky."""
    classes = np.zeros((100, 100), np.int64)
    classes[50:] = 1
    classes[40:60, 10:30] = 2
    classes[45:65, 60:90] = 2
    classes[50, 20] = 0
    classes[10, 10] = 2
    confidence = np.full((100, 100), 0.5, np.float32)
    confidence[:, 50:] = 0.9
    return classes, confidence


def test_no_class_is_numbered_as_nothing() -> None:
    _, parts = instances(*scene(), TABLE)
    assert sorted({(part.category, part.label) for part in parts.values()}) == [
        (1, "sky"),
        (2, "grass"),
        (3, "house"),
    ]
    voc = ClassTable(names=("background", "grass", "house"), things=frozenset(), nothing=frozenset({0}))
    _, parts = instances(*scene(), voc)
    assert sorted((part.category, part.label) for part in parts.values()) == [(1, "grass"), (2, "house")]


def test_things_are_counted_and_the_rest_is_not() -> None:
    ids, parts = instances(*scene(), TABLE)
    labels = sorted(part.label for part in parts.values())
    assert labels == ["grass", "house", "house", "sky"]
    left, right = (parts[int(ids[50, column])] for column in (15, 75))
    assert (left.label, left.category, left.score) == ("house", 3, 0.5)
    assert right.score == pytest.approx(0.9, abs=1e-3)
    assert parts[int(ids[0, 0])].label == "sky"


def test_pinholes_are_filled_and_specks_removed() -> None:
    ids, parts = instances(*scene(), TABLE)
    assert ids[50, 20] == ids[50, 15]
    assert parts[int(ids[10, 10])].label == "sky"


def test_background_is_nothing() -> None:
    table = ClassTable.of(
        segmenter_entry(Path(), things=("House",)),
        SimpleNamespace(id2label={0: "background", 1: "grass", 2: "house"}),
    )
    assert table.things == {2}
    ids, parts = instances(*scene(), table)
    assert ids[0, 0] == 0
    assert {part.label for part in parts.values()} == {"grass", "house"}


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("save", [beit, dpt_semantic, mobilenet_deeplab, upernet])
def test_other_semantic_networks_open_alike(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    other = segmentation.load(segmenter_entry(save(tmp_path / "model")), CPU)
    together = other.run([segment_task(image) for image in pictures()], Steps())
    for image, found in zip(pictures(), together, strict=True):
        alone = masks(outcome(other.run([segment_task(image)], Steps())[0]))
        assert masks(outcome(found)).ids.shape == image.shape[:2]
        assert (masks(outcome(found)).ids != alone.ids).mean() < 0.001


class Bright(torch.nn.Module):
    """Stands in for a network: class 2 where the picture is bright, else class 0."""

    dtype = torch.float32

    def forward(self, pixel_values: torch.Tensor) -> Any:
        bright = (pixel_values.mean(1) > 0).float()
        return SimpleNamespace(logits=torch.stack([1 - bright, 0 * bright, bright], 1) * 9)


@pytest.mark.parametrize("save", [mobilenet_deeplab, beit, segformer])
def test_masks_lie_where_the_picture_is_though_processors_cut_out_its_middle(
    tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    other = segmentation.load(segmenter_entry(save(tmp_path / "model")), CPU)
    other.network.net = Bright()
    image = np.zeros((100, 300, 3), np.uint8)
    image[20:60, 10:40] = 255  # outside the middle square
    found = masks(outcome(other.run([segment_task(image, labels=["house"])], Steps())[0]))
    rows, columns = np.nonzero(found.ids)
    edges = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    assert np.abs(np.array(edges) - (20, 60, 10, 40)).max() <= 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ("sky", "grass")}, "names 2 classes, and the network has 3"),
        ({"classes": (*NAMES, "boat")}, "names 4 classes, and the network has 3"),
        ({"things": ("hause",)}, "'hause' of the catalogue's things is no class"),
    ],
)
def test_a_catalogue_that_does_not_fit_the_network_fails_at_load(
    tmp_path: Path, fields: dict[str, tuple[str, ...]], message: str
) -> None:
    folder = segformer(tmp_path / "segformer", NAMES)
    with pytest.raises(ModelUnavailable, match=message):
        segmentation.load(segmenter_entry(folder, **fields), CPU)


def test_the_things_may_stand_in_the_models_own_configuration(tmp_path: Path) -> None:
    folder = segformer(tmp_path / "segformer", NAMES, things=["house", "grass"])
    assert segmentation.load(segmenter_entry(folder), CPU).classes.things == {1, 2}


def test_weights_that_lack_tensors_are_refused(tmp_path: Path) -> None:
    folder = segformer(tmp_path / "segformer", NAMES)
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "classifier" in name)
    tensors.pop(gone)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="incomplete"):
        segmentation.load(segmenter_entry(folder), CPU)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    folder = segformer(tmp_path / "segformer", NAMES)
    tensors = load_file(folder / "model.safetensors")
    next(tensor for name, tensor in tensors.items() if "classifier" in name)[:] = np.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="not finite"):
        segmentation.load(segmenter_entry(folder), CPU)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    folder = segformer(tmp_path / "segformer", NAMES)
    (folder / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(ModelUnavailable, match="model tiny"):
        segmentation.load(segmenter_entry(folder), CPU)
