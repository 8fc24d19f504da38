"""Phrases to masks by a real CLIPSeg with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_worker.families import phrases
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation, Task
from pixelkiln_worker.families.phrases import PhraseSegmenter, best_of
from tests.tiny_models import CPU, Steps, photo_like, segment_task, segmenter_entry
from tests.tiny_networks import clipseg, sam

HALF = 20.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clipseg(tmp_path_factory.mktemp("phrases") / "clipseg")


@pytest.fixture
def model(folder: Path) -> PhraseSegmenter:
    return load(folder)


def load(folder: Path, **fields: Any) -> PhraseSegmenter:
    entry = segmenter_entry(folder, **{"defaults": {"threshold": 0.4}, "world": "toyland"} | fields)
    return phrases.load(entry, CPU)


def pictures() -> list[Pixels]:
    image = photo_like()[0]
    return [image, image[:, ::-1].copy(), image[:120], image[:90, :60], 255 - image]


def run(model: PhraseSegmenter, *tasks: Task) -> list[Outcome]:
    outcomes = model.run(tasks, Steps())
    assert all(isinstance(found, Outcome) for found in outcomes), outcomes
    return [found for found in outcomes if isinstance(found, Outcome)]


def masks(found: Outcome) -> Segmentation:
    assert found.segmentation is not None
    return found.segmentation


def draw(model: PhraseSegmenter, monkeypatch: pytest.MonkeyPatch, **logits: np.ndarray) -> None:
    """Let the network answer with these logits, by the first word of the phrase."""

    def answer(images: Any, asked: list[list[str]]) -> list[torch.Tensor]:
        return [
            torch.from_numpy(np.stack([logits[phrase.split()[0]] for phrase in each])).float()
            for each in asked
        ]

    monkeypatch.setattr(model, "_logits", answer)


def half(side: str, high: float = HALF, low: float = -HALF) -> np.ndarray:
    """16 x 16 logits, high on one side."""
    logits = np.full((16, 16), low)
    places: dict[str, Any] = {"left": np.s_[:, :8], "right": np.s_[:, 8:], "top": np.s_[:8]}
    logits[places[side]] = high
    return logits


def test_the_logits_are_the_librarys(model: PhraseSegmenter) -> None:
    asked = ["a red disc", "white", "tree"]
    [found] = model._logits([pictures()[0]], [asked])
    net, processor = model.network.net, model.network.processor
    inputs = processor(text=asked, images=[pictures()[0]] * 3, padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = net(
            **{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        ).logits
    assert torch.allclose(found, theirs, atol=1e-4)


def test_a_batch_gives_the_masks_of_single_runs(model: PhraseSegmenter) -> None:
    asked = [["red disc", "white disc"], ["tree"], ["white disc", "the sky above", "sea"], ["sea"], ["a"]]
    tasks = [segment_task(image, labels=labels) for image, labels in zip(pictures(), asked, strict=True)]
    for task, found in zip(tasks, run(model, *tasks), strict=True):
        [alone] = run(model, task)
        assert task.image is not None
        assert masks(found).ids.shape == task.image.shape[:2]
        assert (masks(found).ids != masks(alone).ids).mean() < 0.002
        for one, two in zip(masks(found).segments, masks(alone).segments, strict=True):
            assert (one.id, one.label, one.category) == (two.id, two.label, two.category)
            assert one.score == pytest.approx(two.score, abs=2e-3)


def test_a_picture_is_encoded_once_for_all_its_phrases(model: PhraseSegmenter) -> None:
    passes: list[int] = []
    hook = model.network.net.clip.vision_model.register_forward_hook(
        lambda module, arguments, made: passes.append(len(made.last_hidden_state))
    )
    labels = [f"thing {number}" for number in range(64)]
    run(model, segment_task(pictures()[0], labels=labels), segment_task(pictures()[1], labels=labels))
    hook.remove()
    assert passes == [2]


def test_what_phrases_name_is_labelled_with_them(
    model: PhraseSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(model, monkeypatch, red=half("left"), sea=half("right", high=1.0))
    [found] = run(model, segment_task(pictures()[2], labels=["red house", "sea"]))
    left, right = (
        next(s for s in masks(found).segments if s.label == label) for label in ("red house", "sea")
    )
    assert (left.category, right.category) == (1, 2)
    assert left.score == pytest.approx(1.0, abs=5e-3)
    assert right.score == pytest.approx(0.73, abs=0.02)
    middle = masks(found).ids.shape[1] // 2
    assert (masks(found).ids[:, : middle - 6] == left.id).all()
    assert (masks(found).ids[:, middle + 6 :] == right.id).all()
    assert "toyland" in found.detail["note"]
    assert found.warnings == ()


def test_where_phrases_overlap_the_more_likely_wins(
    model: PhraseSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(
        model, monkeypatch, red=half("left", high=3.0), sea=half("top", high=1.0), sky=half("left", high=2.0)
    )
    [found] = run(model, segment_task(pictures()[0], labels=["red", "sea", "sky"]))
    where = {segment.label: masks(found).ids == segment.id for segment in masks(found).segments}
    assert where["red"][20, 20]
    assert where["sea"][20, 180]
    assert masks(found).ids[180, 180] == 0
    [warning] = found.warnings
    assert warning["message"] == "'sky' was not found: only in specks, or where another phrase fits better"


def test_a_phrase_nowhere_above_the_threshold_is_named(
    model: PhraseSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(model, monkeypatch, red=half("left"), sea=half("right", high=-1.0))
    [found] = run(model, segment_task(pictures()[0], labels=["red", "sea"]))
    [warning] = found.warnings
    assert warning["code"] == "nothing_found"
    assert warning["message"] == "'sea' was not found: its highest score is 0.27, the threshold 0.4"
    [lower] = run(model, segment_task(pictures()[0], labels=["red", "sea"], threshold=0.25))
    assert {segment.label for segment in masks(lower).segments} == {"red", "sea"}


def test_the_threshold_is_the_jobs_else_the_catalogues_else_a_half(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fields, asked, there in (
        ({}, {}, False),
        ({"threshold": 0.4}, {}, True),
        ({}, {"threshold": 0.4}, True),
    ):
        model = load(folder, defaults=fields)
        draw(model, monkeypatch, red=half("left", high=-0.2))  # a probability of 0.45
        [found] = run(model, segment_task(pictures()[0], labels=["red"], **asked))
        assert bool(masks(found).segments) is there


def test_only_things_are_split_into_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder, things=("Balloon",))
    two = np.full((16, 16), -HALF)
    two[2:6, 2:6] = two[9:13, 9:13] = HALF
    draw(model, monkeypatch, balloon=two, sea=two[::-1].copy())
    [found] = run(model, segment_task(pictures()[0], labels=["balloon", "sea"]))
    assert sorted(segment.label for segment in masks(found).segments) == ["balloon", "balloon", "sea"]


def test_a_job_without_phrases_fails_alone(model: PhraseSegmenter) -> None:
    tasks = [segment_task(pictures()[0], labels=[]), segment_task(pictures()[0], labels=[" "])]
    *bad, good = model.run([*tasks, segment_task(pictures()[0], labels=["red"])], Steps())
    assert [getattr(error, "code", None) for error in bad] == ["missing_field"] * 2
    assert all(isinstance(error, InvalidInput) for error in bad)
    assert isinstance(good, Outcome)


def test_a_phrase_given_twice_is_looked_for_once(
    model: PhraseSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(model, monkeypatch, red=half("left"))
    [found] = run(model, segment_task(pictures()[0], labels=["red", " red "]))
    assert [segment.label for segment in masks(found).segments] == ["red"]
    assert found.warnings == ()


def test_a_phrase_longer_than_the_model_reads_is_cut(model: PhraseSegmenter) -> None:
    [found] = run(model, segment_task(pictures()[0], labels=["red " * 60]))
    assert masks(found).ids.shape == (200, 200)


def test_more_phrases_than_are_enlarged_at_once_are_all_compared() -> None:
    logits = torch.full((40, 4, 4), -5.0)
    for number in range(40):
        logits[number, number % 4, number // 10] = number
    best, winner = best_of(logits, (4, 4))
    direct = logits.sigmoid().max(0)
    assert torch.allclose(best, direct.values)
    assert torch.equal(winner[best > 0.5], direct.indices[best > 0.5])


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    broken = clipseg(tmp_path / "clipseg")
    tensors = load_file(broken / "model.safetensors")
    tensors["decoder.film_mul.weight"][0] = np.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="not finite"):
        load(broken)


def test_weights_that_lack_tensors_and_other_networks_are_refused(tmp_path: Path) -> None:
    broken = clipseg(tmp_path / "clipseg")
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("decoder.film_mul.weight")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="incomplete"):
        load(broken)
    with pytest.raises(ModelUnavailable, match="model tiny"):
        load(sam(tmp_path / "sam"))
