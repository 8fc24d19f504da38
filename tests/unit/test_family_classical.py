"""The methods without weights, on a picture whose parts are known."""

from __future__ import annotations

import numpy as np
import pytest

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.errors import InvalidInput, JobCanceled, ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.families import classical, colours, regions
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation
from tests.tiny_models import CPU, Steps, photo_like, segment_task

CATALOGUE = Catalogue.load()
METHODS = sorted(classical.METHODS)
RED_BOX = {"x0": 18.0, "y0": 26.0, "x1": 102.0, "y1": 114.0}


def entry_of(method: str) -> ModelEntry:
    return CATALOGUE.get(f"classical-{method}", Kind.SEGMENT)


def run(method: str, image: Pixels | None, **fields: object) -> Outcome:
    outcome = classical.load(entry_of(method), CPU).run([segment_task(image, **fields)], Steps())[0]
    assert isinstance(outcome, Outcome), outcome
    return outcome


def segmentation(outcome: Outcome) -> Segmentation:
    assert outcome.segmentation is not None
    return outcome.segmentation


def marks(method: str) -> dict[str, object]:
    return {"boxes": [RED_BOX]} if method == "grabcut" else {}


def iou(one: np.ndarray, two: np.ndarray) -> float:
    return float((one & two).sum() / (one | two).sum())


def best_iou(found: Segmentation, truth: np.ndarray) -> float:
    return max(iou(found.ids == segment.id, truth) for segment in found.segments)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_catalogue_is_well_formed(method: str) -> None:
    image = photo_like()[0]
    found = segmentation(run(method, image, **marks(method)))
    assert found.ids.shape == image.shape[:2]
    assert found.ids.dtype == np.uint16
    ids = [segment.id for segment in found.segments]
    assert ids == list(range(1, len(ids) + 1))
    assert set(np.unique(found.ids)) - {0} == set(ids)
    areas = np.bincount(found.ids.ravel())[1:]
    assert list(areas) == sorted(areas, reverse=True)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_picture_gives_the_same_masks(method: str) -> None:
    image = photo_like()[0]
    model = classical.load(entry_of(method), CPU)
    tasks = [segment_task(image, **marks(method)), segment_task(image[:, ::-1].copy(), **marks(method))]
    together = model.run([*tasks, tasks[0]], Steps())
    alone = run(method, image, **marks(method))
    for outcome in (together[0], together[2]):
        assert isinstance(outcome, Outcome)
        assert np.array_equal(segmentation(outcome).ids, segmentation(alone).ids)
        assert segmentation(outcome).segments == segmentation(alone).segments


@pytest.mark.parametrize("method", ["felzenszwalb", "slic", "watershed"])
def test_regions_follow_the_discs(method: str) -> None:
    image, truth = photo_like()
    outcome = run(method, image)
    found = segmentation(outcome)
    assert best_iou(found, truth["red"]) > 0.85
    assert best_iou(found, truth["white"]) > 0.85
    assert len(found.segments) <= 40
    assert found.segments[0].label == "region 1"
    assert "no classes" in outcome.detail["note"]


@pytest.mark.parametrize("method", ["felzenszwalb", "slic", "watershed"])
def test_regions_can_be_asked_for_by_number(method: str) -> None:
    assert len(segmentation(run(method, photo_like()[0], regions=5)).segments) == 5


def test_a_wish_beyond_the_palette_is_limited_to_it() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    outcome = run("slic", noise, regions=512)
    assert 100 < len(segmentation(outcome).segments) <= 255
    assert [warning["code"] for warning in outcome.warnings] == ["regions_limited"]


def test_otsu_separates_light_from_dark() -> None:
    image, truth = photo_like()
    found = segmentation(run("otsu", image))
    labels = {segment.label: found.ids == segment.id for segment in found.segments}
    assert set(labels) == {"light", "dark"}
    assert iou(labels["light"], truth["white"]) > 0.9


def test_colours_are_called_by_their_names() -> None:
    image, truth = photo_like()
    found = segmentation(run("kmeans", image, regions=4))
    red = next(segment for segment in found.segments if segment.label == "red")
    assert iou(found.ids == red.id, truth["red"]) > 0.9
    assert colours.NAMES[red.category - 1] == "red"


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "grey"),
        ((220, 30, 30), "red"),
        ((240, 140, 20), "orange"),
        ((250, 225, 40), "light yellow"),
        ((30, 140, 40), "green"),
        ((20, 40, 120), "dark blue"),
        ((130, 50, 160), "purple"),
        ((255, 170, 190), "light pink"),
        ((110, 70, 40), "brown"),
    ],
)
def test_a_colour_has_the_name_people_give_it(rgb: tuple[int, int, int], name: str) -> None:
    pixel = np.array([[rgb]], np.uint8)
    assert colours.name(regions.to_lab(pixel)[0, 0]) == name
    assert name in colours.NAMES


def test_grabcut_finds_the_disc_in_the_box() -> None:
    image, truth = photo_like()
    found = segmentation(run("grabcut", image, boxes=[RED_BOX]))
    assert [segment.label for segment in found.segments] == ["object"]
    assert iou(found.ids == 1, truth["red"]) > 0.9


def test_grabcut_finds_the_disc_under_a_click() -> None:
    image, truth = photo_like()
    found = segmentation(run("grabcut", image, points=[{"x": 60.0, "y": 70.0}]))
    assert iou(found.ids == 1, truth["red"]) > 0.9


def test_grabcut_finds_one_object_a_box() -> None:
    image, truth = photo_like()
    white = {"x0": 94.0, "y0": 84.0, "x1": 186.0, "y1": 176.0}
    found = segmentation(run("grabcut", image, boxes=[RED_BOX, white]))
    assert len(found.segments) == 2
    assert iou(found.ids == 1, truth["white"]) > 0.9  # the larger
    assert iou(found.ids == 2, truth["red"]) > 0.9


def test_grabcut_keeps_its_edge_on_a_large_picture() -> None:
    image, truth = photo_like(1_600)
    box = {side: value * 8 for side, value in RED_BOX.items()}
    found = segmentation(run("grabcut", image, boxes=[box]))
    assert iou(found.ids == 1, truth["red"]) > 0.97


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"boxes": [{"x0": 300.0, "y0": 0.0, "x1": 310.0, "y1": 9.0}]},
        {"points": [{"x": 60.0, "y": 700.0}]},
        {"points": [{"x": 6.0, "y": 7.0, "positive": False}]},
    ],
)
def test_grabcut_refuses_marks_that_show_nothing(fields: dict[str, object]) -> None:
    image = photo_like()[0]
    good = segment_task(image, boxes=[RED_BOX])
    outcomes = classical.load(entry_of("grabcut"), CPU).run([segment_task(image, **fields), good], Steps())
    assert isinstance(outcomes[0], InvalidInput)
    assert outcomes[0].code == "invalid_region"
    assert isinstance(outcomes[1], Outcome)  # its neighbour in the batch is not harmed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(8, 8), (8, 900), (1, 1)])
def test_small_and_plain_pictures_do_not_break(method: str, shape: tuple[int, int]) -> None:
    fields = {"boxes": [{"x0": 0.0, "y0": 0.0, "x1": 1.0, "y1": 1.0}]} if method == "grabcut" else {}
    found = segmentation(run(method, np.full((*shape, 3), 77, np.uint8), **fields))
    assert found.ids.shape == shape
    assert len(found.segments) <= 1


def test_a_box_round_the_whole_picture_is_allowed() -> None:
    image, truth = photo_like()
    found = segmentation(run("grabcut", image, boxes=[{"x0": 0.0, "y0": 0.0, "x1": 900.0, "y1": 900.0}]))
    assert found.ids[truth["white"]].mean() > 0.8


def test_labels_keep_only_what_is_wanted() -> None:
    image, truth = photo_like()
    outcome = run("otsu", image, labels=["Light", "zebra"])
    found = segmentation(outcome)
    assert [segment.label for segment in found.segments] == ["light"]
    assert iou(found.ids == 1, truth["white"]) > 0.9
    assert [warning["code"] for warning in outcome.warnings] == ["unknown_label"]


def test_labels_for_a_method_without_classes_give_a_warning() -> None:
    outcome = run("felzenszwalb", photo_like()[0], labels=["cat"])
    assert [warning["code"] for warning in outcome.warnings] == ["labels_ignored"]


def test_a_large_picture_is_cut_at_its_own_size() -> None:
    image, truth = photo_like(1_500)
    found = segmentation(run("slic", image))
    assert found.ids.shape == (1_500, 1_500)
    assert best_iou(found, truth["red"]) > 0.9


def test_each_picture_is_a_step_and_a_cancel_passes_through() -> None:
    model = classical.load(entry_of("otsu"), CPU)
    tasks = [segment_task(photo_like()[0])] * 3
    watch = Steps(fail_at=2, error=JobCanceled())
    with pytest.raises(JobCanceled):
        model.run(tasks, watch)
    assert watch.seen == [(1, 3), (2, 3)]
    assert len(model.run(tasks, Steps())) == 3


def test_a_method_nobody_knows_is_unavailable() -> None:
    with pytest.raises(ModelUnavailable, match="no classical method 'magic'"):
        classical.load(entry_of("otsu").model_copy(update={"method": "magic"}), CPU)
