"""Networks of queries with random weights, end to end; and how overlapping masks become one map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.families import queries, universal
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation, Task
from pixelkiln_worker.families.queries import Naming, Queries
from pixelkiln_worker.families.universal import UniversalSegmenter
from tests.tiny_models import CPU, Steps, photo_like, segformer
from tests.tiny_segmenters import eomt, mask2former, maskformer, oneformer
from tests.tiny_vision_models import CLASSES, entry_of, lose, outcome, spoil, task_of

TASKS = ("panoptic", "instance", "semantic")
NAMING = Naming(names=CLASSES, categories=(1, 2, 3))
SHAPES = {"mask2former": mask2former, "maskformer": maskformer, "oneformer": oneformer, "eomt": eomt}


def load(folder: Path, **fields: Any) -> UniversalSegmenter:
    known = {"things": ("house",), "options": {"task": TASKS}}
    return universal.load(entry_of("universal", Kind.SEGMENT, folder, **known | fields), CPU)


def ask(image: Pixels | None, task: str | None = None, **fields: Any) -> Task:
    options = {"task": task} if task else {}
    return task_of(Kind.SEGMENT, image, options=options, threshold=0.0, **fields)


def masks(found: Outcome | Exception) -> Segmentation:
    segmentation = outcome(found).segmentation
    assert segmentation is not None
    return segmentation


def pictures() -> list[Pixels]:
    image = photo_like()[0]
    return [image, image[:120], image[:, :90], image[::-1].copy(), image[:64, :64]]


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> UniversalSegmenter:
    save: Callable[[Path], Path] = SHAPES[request.param]
    return load(save(tmp_path_factory.mktemp(request.param) / "model"), world="toyland")


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_several_shapes_gives_the_masks_of_single_runs(
    model: UniversalSegmenter, task: str
) -> None:
    together = model.run([ask(image, task) for image in pictures()], Steps())
    for image, found in zip(pictures(), together, strict=True):
        alone = masks(model.run([ask(image, task)], Steps())[0])
        assert masks(found).ids.shape == image.shape[:2]
        assert (masks(found).ids != alone.ids).mean() < 0.001
        assert [s.label for s in masks(found).segments] == [s.label for s in alone.segments]
        assert outcome(found).detail["task"] == task


def test_the_world_is_told_and_a_missing_picture_fails_alone(model: UniversalSegmenter) -> None:
    missing, found = model.run([ask(None), ask(pictures()[0])], Steps())
    assert isinstance(missing, InvalidInput)
    assert "toyland" in outcome(found).detail["note"]


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        ({}, {}, "panoptic"),
        ({"things": ()}, {}, "instance"),
        ({"things": CLASSES}, {}, "instance"),
        ({"options": {"task": ("semantic",)}}, {}, "semantic"),
        ({"defaults": {"task": "instance"}}, {}, "instance"),
        ({"defaults": {"task": "instance"}}, {"task": "semantic"}, "semantic"),
    ],
)
def test_the_task_is_the_jobs_the_catalogues_or_what_the_classes_allow(
    tmp_path: Path, fields: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    model = load(eomt(tmp_path / "model"), **fields)
    found = model.run([task_of(Kind.SEGMENT, pictures()[0], options=options)], Steps())[0]
    assert outcome(found).detail["task"] == expected


def test_a_picture_seen_in_pieces_comes_back_whole(tmp_path: Path) -> None:
    size = {"shortest_edge": 64, "longest_edge": None}
    model = load(eomt(tmp_path / "model", do_split_image=True, do_pad=False, size=size))
    for image in pictures():
        found = model.run([ask(image, "panoptic")], Steps())[0]
        assert outcome(found).detail["task"] == "semantic"
        assert masks(found).ids.shape == image.shape[:2]
        assert (masks(found).ids > 0).all()


class Corner(torch.nn.Module):
    """Stands in for a network: its first query is a thing whose mask is the left half of the real picture."""

    config: Any
    dtype = torch.float32

    def __init__(self, config: Any, columns: int) -> None:
        super().__init__()
        self.config, self.columns = config, columns

    def forward(self, pixel_values: torch.Tensor, **more: Any) -> Any:
        rows, _, height, width = pixel_values.shape
        found = torch.full((rows, 2, height, width), -9.0)
        found[:, 0, :, : self.columns] = 9.0
        chances = torch.full((rows, 2, len(CLASSES) + 1), -9.0)
        chances[:, 0, 2] = chances[:, 1, -1] = 9.0
        return type("Answer", (), {"class_queries_logits": chances, "masks_queries_logits": found})


@pytest.mark.parametrize("save", [eomt, mask2former])
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_padding_does_not_move_the_masks(tmp_path: Path, save: Callable[[Path], Path], task: str) -> None:
    model = load(save(tmp_path / "model"))
    tall = np.full((128, 64, 3), 90, np.uint8)
    columns = 16 if save is eomt else 32  # EoMT sees it as 64 x 32 in a square, Mask2Former as 128 x 64
    model.network.net = Corner(model.network.net.config, columns)
    found = masks(model.run([ask(tall, task)], Steps())[0])
    expected = np.zeros((128, 64), np.uint16)
    expected[:, :32] = 1
    assert np.array_equal(found.ids, expected)
    assert [(segment.label, segment.category) for segment in found.segments] == [("house", 3)]


# ------------------------------------------------------------------------------------------------ the masks


def found_by(*masks: tuple[float, int, tuple[slice, slice], float]) -> Queries:
    """Queries on 40 x 40 pixels: score, class, where, and how certain its mask is there."""
    maps = torch.zeros(len(masks), 40, 40)
    for number, (_, _, where, certain) in enumerate(masks):
        maps[number][where] = certain
    return Queries(
        scores=torch.tensor([score for score, *_ in masks]),
        labels=torch.tensor([label for _, label, *_ in masks]),
        masks=maps,
    )


TOP, BOTTOM = (slice(0, 20), slice(0, 40)), (slice(20, 40), slice(0, 40))
MIDDLE, LEFT = (slice(10, 30), slice(10, 30)), (slice(0, 40), slice(0, 10))


def test_two_finds_of_stuff_become_one_segment_and_things_stay_apart() -> None:
    chosen = found_by((0.9, 0, TOP, 1.0), (0.7, 0, BOTTOM, 1.0))
    ids, parts = queries.panoptic(chosen, NAMING, frozenset({0}))
    assert (ids == 1).all()
    assert [(part.label, part.score) for part in parts.values()] == [("sky", 0.9)]
    ids, parts = queries.panoptic(chosen, NAMING, frozenset())
    assert [(ids == number).sum() for number in (1, 2)] == [800, 800]
    assert [part.score for part in parts.values()] == [0.9, 0.7]


def test_a_find_that_hardly_shows_is_none() -> None:
    chosen = found_by((0.9, 2, MIDDLE, 1.0), (0.6, 2, (slice(10, 30), slice(10, 32)), 1.0))
    ids, parts = queries.panoptic(chosen, NAMING, frozenset())
    assert len(parts) == 1
    assert (ids > 0).sum() == 400
    ids, parts = queries.instances(chosen, NAMING, 0.5)
    assert [part.score for part in parts.values()] == [0.9]


def test_the_better_of_two_overlapping_instances_lies_on_top() -> None:
    for order in (1, -1):
        pair = [(0.8, 2, MIDDLE, 1.0), (0.9, 1, LEFT, 1.0), (0.7, 2, (slice(0, 40), slice(0, 20)), 1.0)]
        ids, parts = queries.instances(found_by(*pair[::order]), NAMING, 0.5)
        assert [part.label for part in parts.values()] == ["grass", "house"]
        assert parts[int(ids[20, 15])].label == "house"
        assert parts[int(ids[20, 5])].label == "grass"


def test_an_instances_score_is_that_of_its_class_times_that_of_its_mask() -> None:
    chosen = found_by((0.8, 2, MIDDLE, 0.75), (0.9, 2, LEFT, 0.55))
    _, parts = queries.instances(chosen, NAMING, 0.5)
    assert [part.score for part in parts.values()] == [0.6]


def test_nothing_found_gives_an_empty_map() -> None:
    none = Queries(scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.long), masks=torch.zeros(0, 4, 4))
    for ids, parts in (queries.panoptic(none, NAMING, frozenset()), queries.instances(none, NAMING, 0.5)):
        assert not ids.any()
        assert not parts


def test_each_pixel_has_its_likeliest_class() -> None:
    chances = torch.zeros(3, 8, 8)
    chances[0, :4], chances[1, 4:], chances[2] = 0.9, 0.6, 0.2
    ids, parts = queries.classes(chances, NAMING, frozenset({0}))
    assert not ids[:4].any()
    assert [(part.label, part.score) for part in parts.values()] == [("grass", 0.75)]


def test_panoptic_masks_that_do_not_touch_are_the_librarys_own(tmp_path: Path) -> None:
    model = load(eomt(tmp_path / "model"))
    logits = torch.full((1, 3, 64, 64), -9.0)
    logits[0, 0, :20], logits[0, 1, 30:50, 10:30], logits[0, 2, 52:, 40:] = 9.0, 9.0, 9.0
    chances = torch.full((1, 3, 4), -9.0)
    chances[0, 0, 0] = chances[0, 1, 2] = chances[0, 2, 2] = 9.0
    answer = type("Answer", (), {"class_queries_logits": chances, "masks_queries_logits": logits})
    (theirs,) = model.network.processor.post_process_panoptic_segmentation(
        answer, stuff_classes=[0, 1], target_sizes=[(64, 64)]
    )
    scores, labels = chances[0].softmax(-1)[..., :-1].max(-1)
    chosen = Queries(scores=scores, labels=labels, masks=logits[0].sigmoid())
    ids, parts = queries.panoptic(chosen, NAMING, frozenset({0, 1}))
    assert np.array_equal(ids, theirs["segmentation"].numpy() + 1)
    assert [part.category - 1 for part in parts.values()] == [s["label_id"] for s in theirs["segments_info"]]


# ------------------------------------------------------------------------------------------------ folders


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    broken, short = eomt(tmp_path / "broken"), eomt(tmp_path / "short")
    spoil(broken, "class_predictor")
    lose(short, "class_predictor")
    with pytest.raises(ModelUnavailable, match="not finite"):
        load(broken)
    with pytest.raises(ModelUnavailable, match="incomplete"):
        load(short)


def test_another_kind_of_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="model tiny"):
        load(segformer(tmp_path / "model"))
