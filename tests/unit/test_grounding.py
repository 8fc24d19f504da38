"""Boxes by phrase: our answers are the library's, whatever the detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker.families.contract import Pixels
from pixelkiln_worker.families.grounding import Detector, Dino, choose, open_detector
from tests.tiny_models import CPU, photo_like, segmenter_entry
from tests.tiny_networks import grounding_dino, owlvit, sam

PHRASES = ("red disc", "a tree")


def pictures() -> list[Pixels]:
    image = photo_like()[0]
    return [image, image[:100], image[:, 60:]]


@pytest.fixture(scope="module", params=[owlvit, grounding_dino])
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return open_detector(segmenter_entry(request.param(tmp_path_factory.mktemp("detector") / "net")), CPU)


def test_scores_and_boxes_are_the_librarys(detector: Detector) -> None:
    [image] = pictures()[1:2]
    [(scores, corners)] = detector.ask([image], PHRASES)
    processor = detector.network.processor
    text = "red disc. a tree." if isinstance(detector, Dino) else [list(PHRASES)]
    longest = {} if isinstance(detector, Dino) else {"max_length": 16}
    inputs = processor(images=image, text=text, return_tensors="pt", **longest)
    with torch.inference_mode():
        made = detector.network.net(**inputs)
    more = {"text_threshold": 0.0} if isinstance(detector, Dino) else {}
    theirs = processor.post_process_grounded_object_detection(
        made, threshold=0.0, target_sizes=[image.shape[:2]], **more
    )[0]
    assert torch.allclose(corners, theirs["boxes"], atol=1e-2)
    if not isinstance(detector, Dino):  # the library's best token may be a full stop, ours is a phrase's
        assert torch.allclose(scores.amax(1), theirs["scores"], atol=1e-5)
        assert torch.equal(scores.argmax(1), theirs["labels"])


def test_pictures_together_get_the_boxes_of_each_alone(detector: Detector) -> None:
    together = detector.ask(pictures(), PHRASES)
    for image, (scores, corners) in zip(pictures(), together, strict=True):
        [(alone, at)] = detector.ask([image], PHRASES)
        assert torch.allclose(scores, alone, atol=1e-4)
        assert torch.allclose(corners, at, atol=1e-2)


def test_owls_phrases_do_not_hear_each_other(tmp_path: Path) -> None:
    owl = open_detector(segmenter_entry(owlvit(tmp_path / "owl")), CPU)
    [(both, _)] = owl.ask(pictures()[:1], PHRASES)
    [(alone, _)] = owl.ask(pictures()[:1], PHRASES[1:])
    assert torch.allclose(both[:, 1:], alone, atol=1e-5)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Dino:
    folder: Path = grounding_dino(tmp_path_factory.mktemp("dino") / "net", max_text_len=24)
    found = open_detector(segmenter_entry(folder), CPU)
    assert isinstance(found, Dino)
    return found


def test_phrases_are_one_text_as_the_library_writes_it(dino: Dino) -> None:
    [(ids, spans)] = dino._texts(["Red disc", "a tree"])
    assert ids == dino.network.processor.tokenizer("red disc. a tree.").input_ids
    tokens = dino.network.processor.tokenizer.convert_ids_to_tokens(ids)
    said = ["".join(tokens[begin:end]).replace("##", "") for begin, end in spans]
    assert said == ["reddisc", "atree"]


def test_phrases_that_do_not_fit_one_text_are_asked_in_several(dino: Dino) -> None:
    phrases = ["red disc", "a tree", "a white boat", "x" * 60, "st. bernard", "..."]
    texts = list(dino._texts(phrases))
    assert len(texts) > 1
    assert all(len(ids) <= 24 for ids, _ in texts)
    assert sum(len(spans) for _, spans in texts) == len(phrases)
    assert all(begin < end for _, spans in texts for begin, end in spans)
    [(scores, corners)] = dino.ask(pictures()[:1], phrases)
    assert scores.shape == (12 * len(texts), len(phrases))
    assert len(corners) == len(scores)
    [(first, _)] = dino.ask(pictures()[:1], phrases[: len(texts[0][1])])
    assert torch.allclose(scores[:12, : first.shape[1]], first, atol=1e-5)
    assert (scores[:12, first.shape[1] :] == 0).all()


def answers(
    *rows: tuple[tuple[float, float], tuple[float, float, float, float]],
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([scores for scores, _ in rows]), torch.tensor([box for _, box in rows])


def test_the_surest_of_boxes_that_repeat_each_other_stays() -> None:
    found = choose(
        answers(
            ((0.5, 0.1), (10, 10, 50, 50)),
            ((0.2, 0.8), (12, 10, 50, 50)),
            ((0.6, 0.1), (60, 10, 90, 50)),
            ((0.1, 0.2), (0, 0, 20, 20)),
        ),
        np.zeros((60, 100, 3), np.uint8),
        0.25,
    )
    assert [(one.phrase, round(one.score, 2), one.box.x0) for one in found] == [(1, 0.8, 12), (0, 0.6, 60)]


def test_boxes_end_with_the_picture_and_slivers_are_dropped() -> None:
    found = choose(
        answers(
            ((0.9, 0.1), (-20, -5, 200, 80)), ((0.9, 0.1), (99.5, 0, 120, 50)), ((0.8, 0), (70, 20, 71, 20.5))
        ),
        np.zeros((60, 100, 3), np.uint8),
        0.25,
    )
    assert [one.box.model_dump() for one in found] == [{"x0": 0, "y0": 0, "x1": 100, "y1": 60}]


def test_in_a_padded_square_boxes_are_parts_of_the_longer_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owl = open_detector(segmenter_entry(owlvit(tmp_path / "owl")), CPU)
    image = np.zeros((50, 200, 3), np.uint8)
    monkeypatch.setattr(
        owl,
        "_forward",
        lambda pixels, phrases: (torch.ones(1, 1, 1), torch.tensor([[[0.5, 0.125, 0.5, 0.25]]])),
    )
    assert owl.ask([image], ["a"])[0][1].tolist() == [[50, 0, 150, 12.5]]
    owl.network.net.config.model_type = "owlv2"
    assert owl.ask([image], ["a"])[0][1].tolist() == [[50, 0, 150, 50]]


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="model tiny"):
        open_detector(segmenter_entry(sam(tmp_path / "sam")), CPU)
