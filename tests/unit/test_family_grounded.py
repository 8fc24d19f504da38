"""Phrases to boxes to masks, by a real detector and a real SAM with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pixelkiln_shared.catalogue import Weights
from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_worker.families import grounded
from pixelkiln_worker.families.contract import Outcome, Pixels, Remembers, Segmentation, Task
from pixelkiln_worker.families.grounded import GroundedSegmenter
from tests.tiny_models import CPU, Steps, photo_like, segment_task, segmenter_entry
from tests.tiny_networks import grounding_dino, owlvit, sam, sam2

DISC = (30.0, 36.0, 94.0, 104.0)
BALL = (100.0, 90.0, 180.0, 170.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grounded")
    for make in (owlvit, grounding_dino, sam, sam2):
        make(root / make.__name__)
    return root


def load(detector: Path, segmenter: Path, **fields: Any) -> GroundedSegmenter:
    companions = {"segmenter": Weights(source=str(segmenter))}
    return grounded.load(segmenter_entry(detector, **{"companions": companions} | fields), CPU)


@pytest.fixture(params=[("owlvit", "sam"), ("grounding_dino", "sam2")])
def model(request: pytest.FixtureRequest, root: Path) -> GroundedSegmenter:
    detector, segmenter = request.param
    return load(root / detector, root / segmenter, world="toyland")


@pytest.fixture
def owl(root: Path) -> GroundedSegmenter:
    return load(root / "owlvit", root / "sam")


def pictures() -> list[Pixels]:
    image = photo_like()[0]
    return [image, image[:, ::-1].copy(), image[:120], 255 - image, image[::-1].copy()]


def run(model: GroundedSegmenter, *tasks: Task) -> list[Outcome]:
    outcomes = model.run(tasks, Steps())
    assert all(isinstance(found, Outcome) for found in outcomes), outcomes
    return [found for found in outcomes if isinstance(found, Outcome)]


def masks(found: Outcome) -> Segmentation:
    assert found.segmentation is not None
    return found.segmentation


def see(
    model: GroundedSegmenter,
    monkeypatch: pytest.MonkeyPatch,
    *seen: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    """Let the detector answer with these scores and boxes, and the SAM fill each box."""
    scores = torch.tensor([scores for scores, _ in seen])
    boxes = torch.tensor([box for _, box in seen])
    monkeypatch.setattr(model.detector, "ask", lambda images, phrases: [(scores, boxes)] * len(images))

    def fill(levels: object, prompt: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        steps = torch.arange(32) + 0.5
        drawn = []
        for x0, y0, x1, y1 in (prompt["input_boxes"][0] / 4).tolist():
            across = (steps > x0) & (steps < x1)
            down = (steps > y0) & (steps < y1)
            drawn.append(torch.where(down[:, None] & across[None], 5.0, -5.0))
        logits = torch.stack(drawn)[:, None].repeat(1, 3, 1, 1)
        return logits, torch.full((len(drawn), 3), 0.5)

    monkeypatch.setattr(model.sam, "_decode", fill)


def test_a_batch_gives_the_masks_of_single_runs(model: GroundedSegmenter) -> None:
    asked = [
        ["red disc", "tree"],
        ["tree"],
        ["red disc", "tree"],
        ["red disc", "tree"],
        ["sea", "sky", "house"],
    ]
    tasks = [
        segment_task(image, labels=labels, threshold=0.3)
        for image, labels in zip(pictures(), asked, strict=True)
    ]
    for task, found in zip(tasks, run(model, *tasks), strict=True):
        [alone] = run(model, task)
        assert task.image is not None
        assert masks(found).segments
        assert masks(found).ids.shape == task.image.shape[:2]
        assert (masks(found).ids != masks(alone).ids).mean() < 0.002
        assert {s.label for s in masks(found).segments} <= set(task.spec.input["labels"])
        assert "toyland" in found.detail["note"]


def test_what_a_phrase_names_is_cut_out_and_scored_by_the_detector(
    owl: GroundedSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(owl, monkeypatch, ((0.9, 0.1, 0.0), DISC), ((0.2, 0.6, 0.0), BALL))
    [found] = run(owl, segment_task(pictures()[0], labels=["red disc", "white disc", "tree"], threshold=0.5))
    by_label = {segment.label: segment for segment in masks(found).segments}
    assert {(s.label, s.category, s.score) for s in by_label.values()} == {
        ("red disc", 1, 0.9),
        ("white disc", 2, 0.6),
    }
    for label, (x0, y0, x1, y1) in (("red disc", DISC), ("white disc", BALL)):
        rows, columns = np.nonzero(masks(found).ids == by_label[label].id)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(edges, (x0, y0, x1, y1))).max() <= 7  # a pixel of the SAM's output
    [warning] = found.warnings
    assert warning["code"] == "nothing_found"
    assert warning["message"] == "'tree' was not found: its highest score is 0.00, the threshold 0.5"


def test_two_of_a_kind_are_two_segments_and_repetitions_one(
    owl: GroundedSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    almost = tuple(side + 1 for side in DISC)
    see(owl, monkeypatch, ((0.9,), DISC), ((0.8,), BALL), ((0.7,), almost))
    [found] = run(owl, segment_task(pictures()[0], labels=["disc"]))
    assert [segment.label for segment in masks(found).segments] == ["disc", "disc"]


def test_a_picture_with_nothing_in_it_is_not_encoded(
    owl: GroundedSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(owl, monkeypatch, ((0.2,), DISC))
    [found] = run(owl, segment_task(pictures()[0], labels=["disc"], threshold=0.5))
    assert masks(found).segments == ()
    assert masks(found).ids.shape == (200, 200)
    assert found.memory is None
    assert [warning["code"] for warning in found.warnings] == ["nothing_found"]


def test_the_threshold_is_the_jobs_else_the_catalogues_else_the_detectors(root: Path) -> None:
    companions = {"segmenter": Weights(source=str(root / "sam"))}
    entry = segmenter_entry(root / "owlvit", companions=companions)
    assert grounded.load(entry, CPU)._least(segment_task(None)) == 0.1
    named = grounded.load(entry.model_copy(update={"defaults": {"threshold": 0.4}}), CPU)
    assert named._least(segment_task(None)) == 0.4
    assert named._least(segment_task(None, threshold=0.0)) == 0.0


def test_the_second_job_on_a_picture_costs_no_encoder_pass(
    owl: GroundedSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(owl, monkeypatch, ((0.9,), DISC))
    assert isinstance(owl, Remembers)
    task = segment_task(pictures()[0], labels=["disc"])
    [first] = run(owl, task)
    assert first.memory is not None
    assert first.memory.key == owl.memory_key(task)
    assert owl.at_hand(first.memory.key)
    [second] = run(owl, segment_task(pictures()[0], labels=["ball"]))
    assert second.memory is None


def test_a_job_without_phrases_fails_alone(model: GroundedSegmenter) -> None:
    bad, good = model.run(
        [segment_task(pictures()[0], labels=[]), segment_task(pictures()[0], labels=["disc"])], Steps()
    )
    assert isinstance(bad, InvalidInput)
    assert bad.code == "missing_field"
    assert isinstance(good, Outcome)


def test_identity_and_footprint_cover_both_networks(model: GroundedSegmenter) -> None:
    networks = (model.detector.network, model.sam.network)
    assert model.footprint_bytes == sum(network.footprint_bytes for network in networks)
    assert model.identity["sha256"] == networks[0].identity["sha256"]
    assert model.identity["segmenter"]["sha256"] == networks[1].identity["sha256"]
    model.close()
    assert [network.net for network in networks] == [None, None]


def test_a_detector_that_gives_no_numbers_fails_its_job(
    owl: GroundedSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(owl, monkeypatch, ((float("nan"),), DISC), ((0.9,), BALL))
    [bad] = owl.run([segment_task(pictures()[0], labels=["disc"])], Steps())
    assert isinstance(bad, ModelUnavailable)


def test_an_entry_without_its_companion_is_refused(root: Path) -> None:
    with pytest.raises(ModelUnavailable, match="needs a companion `segmenter`"):
        grounded.load(segmenter_entry(root / "owlvit"), CPU)


@pytest.mark.parametrize("broken", ["detector", "segmenter"])
def test_bad_weights_of_either_network_are_refused(tmp_path: Path, broken: str) -> None:
    folders = {"detector": owlvit(tmp_path / "owl"), "segmenter": sam(tmp_path / "sam")}
    path = folders[broken] / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if "class_head" in name or "iou_prediction_head" in name:
            tensor[...] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="not finite"):
        load(**folders)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelUnavailable, match="cut short"):
        load(**folders)


def test_a_companion_of_another_hash_is_refused(root: Path) -> None:
    companions = {"segmenter": Weights(source=str(root / "sam"), sha256={"model.safetensors": "0" * 64})}
    with pytest.raises(ModelUnavailable, match="has the SHA-256"):
        load(root / "owlvit", root / "sam", companions=companions)
