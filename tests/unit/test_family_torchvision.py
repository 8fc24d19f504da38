"""torchvision's models without torchvision: what is said where it is missing or broken, what is asked of it.

The library is not installed where these tests run (it breaks CPU builds of torch); a stand-in module takes
its place.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import families
from pixelkiln_worker.families import torchvision_models
from pixelkiln_worker.families.contract import Pixels, Segmentation
from pixelkiln_worker.families.torchvision_models import TorchvisionModel
from tests.tiny_models import CPU, Steps, segformer
from tests.tiny_vision_models import entry_of, outcome, task_of

NAMES = {"0": "__background__", "1": "house", "2": "tree"}


class Detector(torch.nn.Module):
    """Finds a bright rectangle as torchvision's detectors would: a house; and, less surely, a tree."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.masked = masked

    def forward(self, pictures: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [self._one(picture) for picture in pictures]

    def _one(self, picture: torch.Tensor) -> dict[str, torch.Tensor]:
        assert picture.max() <= 1
        bright = picture[0] > 0.9
        rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
        if not len(rows):
            none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
            return none | ({"masks": torch.zeros(0, 1, *bright.shape)} if self.masked else {})
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        scores = torch.tensor([0.9, 0.4]) * self.scale
        found = {"boxes": torch.stack([box, box]), "labels": torch.tensor([1, 2]), "scores": scores}
        return found | ({"masks": torch.stack([bright, bright])[:, None].float()} if self.masked else {})


class Semantic(torch.nn.Module):
    """Gives class 2 to what is bright and class 0 to the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, stack: torch.Tensor) -> dict[str, torch.Tensor]:
        bright = (stack[:, 0] > 1).float()
        logits = torch.stack([9 * (1 - bright), torch.zeros_like(bright), 9 * bright], 1) * self.scale
        return {"out": logits}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """A stand-in for torchvision; what networks it was asked for."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def get_model(name: str, **options: Any) -> torch.nn.Module:
        asked.append((name, options))
        return Semantic() if name in torchvision_models.SEMANTIC else Detector("maskrcnn" in name)

    module = ModuleType("torchvision")
    module.__dict__.update(__version__="0.0", models=SimpleNamespace(get_model=get_model))
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setattr(torch.ops.torchvision, "nms", None, raising=False)
    return asked


def folder_of(folder: Path, architecture: str, state: dict[str, torch.Tensor] | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, "id2label": NAMES}))
    save_file({"scale": torch.ones(1)} if state is None else state, folder / "model.safetensors")
    return folder


def load(folder: Path, **fields: Any) -> TorchvisionModel:
    model: Any = families.load(entry_of("torchvision", Kind.SEGMENT, folder, **fields), CPU)
    assert isinstance(model, TorchvisionModel)
    return model


def picture() -> Pixels:
    image = np.full((60, 100, 3), 40, np.uint8)
    image[20:50, 30:80] = 255
    return image


def masks(found: Any) -> Segmentation:
    segmentation = outcome(found).segmentation
    assert segmentation is not None
    return segmentation


# ------------------------------------------------------------------------------------------------ the library


def test_a_missing_torchvision_is_said_in_one_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "maskrcnn_resnet50_fpn")
    with pytest.raises(ModelUnavailable) as said:
        load(folder)
    assert str(said.value) == "model tiny: torchvision is not installed; it is the extra `torchvision`"


def broken_library(folder: Path) -> Path:
    """A torchvision whose import ends as that of a build for another torch."""
    package = folder / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from torchvision import ops\n")
    (package / "ops.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    facts = folder / "torchvision-0.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.0\n")
    return folder


def test_a_broken_torchvision_is_said_in_one_line_and_breaks_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(broken_library(tmp_path / "site")))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    try:
        with pytest.raises(ModelUnavailable) as said:
            load(folder_of(tmp_path / "model", "maskrcnn_resnet50_fpn"))
        assert "torchvision was built for another torch" in str(said.value)
        assert "\n" not in str(said.value)
        with pytest.raises(ModuleNotFoundError):  # what transformers and diffusers see is that there is none
            import_module("torchvision")
        other = entry_of("segmentation", Kind.SEGMENT, segformer(tmp_path / "other"))
        assert families.load(other, CPU).max_rows == 4
    finally:
        sys.modules.pop("torchvision", None)


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("architecture", ["maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn"])
def test_a_detector_gives_segments_and_boxes(
    tmp_path: Path, library: list[tuple[str, dict[str, Any]]], architecture: str
) -> None:
    model = load(folder_of(tmp_path / "model", architecture), world="toyland")
    assert library == [(architecture, {"weights": None, "weights_backbone": None, "num_classes": 3})]
    large = np.kron(picture(), np.ones((20, 20, 1), np.uint8))  # beyond the working size
    found = model.run(
        [task_of(Kind.SEGMENT, image) for image in (picture(), picture()[:, ::-1], large)], Steps()
    )
    segments = masks(found[0])
    expected = np.zeros((60, 100), np.uint16)
    expected[20:50, 30:80] = 1
    assert np.array_equal(segments.ids, expected)
    assert [(s.label, s.category, s.score) for s in segments.segments] == [("house", 1, 0.9)]
    detail = outcome(found[0]).detail
    assert detail["boxes"] == [{"label": "house", "score": 0.9, "box": [0.3, 0.3333, 0.8, 0.8333]}]
    assert detail["shapes"].startswith("masks" if "maskrcnn" in architecture else "boxes")
    assert "toyland" in detail["note"]
    assert masks(found[2]).ids.shape == (1_200, 2_000)
    assert masks(found[2]).ids[700, 1_000] == 1


def test_the_threshold_lets_the_less_sure_in_but_not_twice_the_same(
    tmp_path: Path, library: list[tuple[str, dict[str, Any]]]
) -> None:
    model = load(folder_of(tmp_path / "model", "maskrcnn_resnet50_fpn"))
    found = model.run([task_of(Kind.SEGMENT, picture(), threshold=0.3)], Steps())[0]
    assert [line["label"] for line in outcome(found).detail["boxes"]] == ["house", "tree"]
    assert [segment.label for segment in masks(found).segments] == ["house"]


def test_nothing_found_is_said(tmp_path: Path, library: list[tuple[str, dict[str, Any]]]) -> None:
    model = load(folder_of(tmp_path / "model", "maskrcnn_resnet50_fpn"))
    (found,) = model.run([task_of(Kind.SEGMENT, np.zeros((50, 70, 3), np.uint8))], Steps())
    assert not masks(found).ids.any()
    assert [warning["code"] for warning in outcome(found).warnings] == ["nothing_found"]


def test_a_semantic_network_gives_classes_at_the_pictures_size(
    tmp_path: Path, library: list[tuple[str, dict[str, Any]]]
) -> None:
    state = {"scale": torch.ones(1)}
    model = load(folder_of(tmp_path / "model", "deeplabv3_resnet50", state), classes=("background", "a", "b"))
    both = model.run([task_of(Kind.SEGMENT, image) for image in (picture(), picture()[:50])], Steps())
    alone = model.run([task_of(Kind.SEGMENT, picture())], Steps())[0]
    assert np.array_equal(masks(both[0]).ids, masks(alone).ids)
    ids = masks(both[0]).ids
    assert ids.shape == (60, 100)
    assert (ids[22:48, 32:78] == 1).all()
    assert not ids[:18].any()
    assert [(s.label, s.category) for s in masks(both[0]).segments] == [("b", 2)]


def test_an_auxiliary_head_in_the_weights_is_built_too(
    tmp_path: Path, library: list[tuple[str, dict[str, Any]]]
) -> None:
    state = {"scale": torch.ones(1), "aux_classifier.0.weight": torch.ones(1)}
    with pytest.raises(ModelUnavailable, match="aux_classifier"):  # the stand-in has none
        load(folder_of(tmp_path / "model", "fcn_resnet50", state))
    assert library[0][1]["aux_loss"] is True


# ------------------------------------------------------------------------------------------------ folders


def test_only_known_architectures_are_built(
    tmp_path: Path, library: list[tuple[str, dict[str, Any]]]
) -> None:
    with pytest.raises(ModelUnavailable, match="none of maskrcnn_resnet50_fpn"):
        load(folder_of(tmp_path / "model", "quantization.resnet50"))
    assert library == []


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"other": torch.ones(1)}, "do not fit deeplabv3_resnet50: scale"),
        ({"scale": torch.ones(2)}, "size mismatch for scale"),
        ({"scale": torch.full((1,), torch.nan)}, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, library: list[tuple[str, dict[str, Any]]], state: dict[str, torch.Tensor], why: str
) -> None:
    with pytest.raises(ModelUnavailable, match=why):
        load(folder_of(tmp_path / "model", "deeplabv3_resnet50", state))
