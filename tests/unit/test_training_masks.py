"""What the models of masks learn from and are measured by: segments, queries, prompts, precision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoImageProcessor,
    AutoModelForMaskGeneration,
    AutoModelForUniversalSegmentation,
    AutoProcessor,
)

from training.dataset import draw_scene
from training.instances import divide
from training.matching import NO_OBJECT, PLACES, QUERIES, collect, match, set_loss, visible_segments
from training.parts import part
from training.points import guess_loss
from training.precision import Found, average_precision, mask_iou, panoptic_quality
from training.prompts import bounding_box, central_pixel, choose, clicks, drawn_box, prompt
from training.world.grammar import CLASSES, FIRST_OBJECT_CLASS

EMBEDDED = Path(__file__).parents[2] / "worker" / "pixelkiln_worker" / "embedded"
HOUSE, TREE = CLASSES.index("house"), CLASSES.index("tree")


def square(left: int, top: int, side: int = 20) -> NDArray[np.bool_]:
    """A mask of one square in 128x128."""
    mask = np.zeros((128, 128), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def report(mask: NDArray[np.bool_], score: float, name: int = HOUSE) -> Found:
    return Found(name=name, score=score, mask=mask)


def test_segments_cover_a_scene_once() -> None:
    for index in range(10):
        _, scene, _ = draw_scene("train", index)
        masks = [mask for _, mask in visible_segments(scene.classes, scene.instances)]
        covered = np.sum(masks, axis=0)
        assert covered.max() == 1
        assert covered.mean() > 0.999


def test_backdrop_queries_own_their_class() -> None:
    targets = collect([[(0, square(0, 0)), (3, square(40, 40))]])
    chosen = match(torch.zeros(1, QUERIES, NO_OBJECT + 1), torch.zeros(1, QUERIES, 64, 64), targets)
    assert chosen[0, :3].tolist() == [0, 3, -1]


def test_an_object_goes_to_the_query_of_its_place() -> None:
    x, y = PLACES[5]
    mask = square(int(x * 128) - 10, int(y * 128) - 10)
    chosen = match(
        torch.zeros(1, QUERIES, NO_OBJECT + 1), torch.zeros(1, QUERIES, 64, 64), collect([[(HOUSE, mask)]])
    )
    assert chosen[0, 0] == FIRST_OBJECT_CLASS + 5


def test_the_set_loss_is_least_for_the_right_answer() -> None:
    targets = collect([[(0, square(0, 0)), (HOUSE, square(60, 60))]])
    names = torch.full((1, QUERIES, NO_OBJECT + 1), -20.0)
    names[..., NO_OBJECT] = 20.0
    masks = torch.full((1, QUERIES, 64, 64), -20.0)
    chosen = match(names, masks, targets)
    wrong = set_loss(names, masks, targets, chosen)
    for place, name in enumerate((0, HOUSE)):
        query = chosen[0, place]
        names[0, query, NO_OBJECT], names[0, query, name] = -20.0, 20.0
        masks[0, query] = targets.masks[0, place] * 40 - 20
    assert set_loss(names, masks, targets, chosen) < 0.01 < wrong


def test_precision_is_one_when_every_object_is_found() -> None:
    truth = [[(HOUSE, square(0, 0)), (HOUSE, square(60, 0))], [(TREE, square(9, 9))]]
    found = [[report(mask, 0.9, name) for name, mask in parts] for parts in truth]
    assert all((values == 1).all() for values in average_precision(found, truth).values())


def test_a_second_report_of_one_object_is_wrong() -> None:
    truth = [[(HOUSE, square(0, 0)), (HOUSE, square(60, 0))]]
    twice = [[report(square(0, 0), 0.9), report(square(0, 0), 0.8), report(square(60, 0), 0.7)]]
    # 51 of the 101 recalls are reached at precision 1, the other 50 at two thirds
    assert average_precision(twice, truth)[HOUSE][0] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_precision_asks_for_better_masks_at_higher_thresholds() -> None:
    truth, found = [[(HOUSE, square(0, 0))]], [[report(square(0, 4), 0.9)]]  # IoU 2/3
    assert average_precision(found, truth)[HOUSE].tolist() == [1.0] * 4 + [0.0] * 6


def test_a_kind_never_found_has_no_precision() -> None:
    assert average_precision([[report(square(0, 0), 0.9, TREE)]], [[(HOUSE, square(0, 0))]])[HOUSE].max() == 0


def test_panoptic_quality_counts_strays_and_misses() -> None:
    truth = [[(HOUSE, square(0, 0)), (HOUSE, square(60, 0))]]
    found = [[(HOUSE, square(0, 0)), (HOUSE, square(90, 90))]]
    assert panoptic_quality(found, truth) == {HOUSE: pytest.approx(0.5)}


def test_masks_of_nothing_have_no_overlap() -> None:
    nothing = np.zeros((8, 8), bool)
    assert mask_iou(nothing, nothing) == 0.0


def test_the_central_pixel_lies_in_the_thickest_part() -> None:
    mask = square(40, 40, 21)
    mask[50, :] = True  # a thin line across the picture
    assert central_pixel(mask) == (50, 50)


def test_clicks_start_on_the_thing_and_say_where_they_are() -> None:
    rng = np.random.default_rng(0)
    mask = square(30, 50)
    seen = set()
    for _ in range(50):
        points, labels = clicks(mask, 3, rng)
        assert labels[0] == 1
        assert [bool(mask[y, x]) for x, y in points] == [label == 1 for label in labels]
        seen |= set(labels)
    assert seen == {0, 1}


def test_drawn_boxes_stay_near_the_thing() -> None:
    rng = np.random.default_rng(0)
    mask = square(30, 50)
    assert bounding_box(mask).tolist() == [30, 50, 50, 70]
    assert all(np.abs(drawn_box(mask, rng) - bounding_box(mask)).max() <= 3 for _ in range(50))


def test_prompts_of_one_draw_have_one_form() -> None:
    rng = np.random.default_rng(0)
    _, scene, _ = draw_scene("train", 3)
    segments = visible_segments(scene.classes, scene.instances)
    forms = set()
    for _ in range(60):
        asked = prompt([choose(segments, 4, rng)] * 2, rng)
        forms.add((0 if asked.points is None else asked.points.shape[2], asked.boxes is not None))
        assert asked.masks.shape == (2, 4, 128, 128)
    assert forms == {(1, False), (2, False), (3, False), (0, True), (1, True)}


def test_one_good_guess_of_three_is_nearly_enough() -> None:
    masks = square(20, 20, 40)[None, None]
    right = torch.from_numpy(masks[..., ::2, ::2].astype(np.float32) * 40 - 20)[:, :, None]
    one = torch.cat([right, -right, -right], dim=2)
    honest, boastful = torch.tensor([[[1.0, 0.0, 0.0]]]), torch.ones(1, 1, 3)
    assert guess_loss(one, honest, masks) < guess_loss(one, boastful, masks)
    assert guess_loss(one, honest, masks) < 0.2 * guess_loss(-right, boastful[..., :1], masks)


def test_the_shipped_instance_model_opens_and_counts() -> None:
    folder = EMBEDDED / part("instances").MODEL
    model = AutoModelForUniversalSegmentation.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    right = 0
    for index in range(8):
        _, scene, _ = draw_scene("evaluation", index)
        (found,) = divide(model, processor, scene.image[None])
        objects = [name for name, _ in found if name >= FIRST_OBJECT_CLASS]
        right += sorted(objects) == sorted(CLASSES.index(item.kind) for item in scene.objects)
    assert right >= 5
    assert model.config.id2label[HOUSE] == "house"


def test_the_shipped_promptable_model_opens_and_answers_a_click() -> None:
    folder = EMBEDDED / part("points").MODEL
    model = AutoModelForMaskGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    overlaps = []
    for index in range(8):
        _, scene, _ = draw_scene("evaluation", index)
        mask = scene.instances == 1
        image = scene.image.repeat(2, axis=0).repeat(
            2, axis=1
        )  # twice the size: the processor must scale both
        click = [2 * axis + 1 for axis in central_pixel(mask)]
        inputs = processor(images=image, input_points=[[click]], return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        masks = processor.image_processor.post_process_masks(output.pred_masks, *sizes)[0][0]
        best = masks[output.iou_scores[0, 0].argmax()].numpy()
        overlaps.append(mask_iou(best[::2, ::2], mask))
    assert np.median(overlaps) > 0.7
