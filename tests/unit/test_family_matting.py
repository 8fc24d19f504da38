"""The foreground by networks: by classes, and by ViTMatte around a rough outline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixelkiln_shared.catalogue import Catalogue, Weights
from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_shared.kinds import Kind, Role
from pixelkiln_worker import families
from pixelkiln_worker.families import matting
from pixelkiln_worker.families.contract import Pixels
from pixelkiln_worker.families.matting import Matter, trimap
from tests.tiny_models import CPU, Steps, photo_like, segformer
from tests.tiny_vision_models import CLASSES, entry_of, outcome, spoil, task_of, vitmatte
from training.world import CLASSES as WORLD
from training.world import render, sample_spec
from training.world.grammar import FIRST_OBJECT_CLASS


def load(folder: Path, method: str, **fields: Any) -> Matter:
    known = {"things": ("house",)}
    return matting.load(entry_of("matting", Kind.CUTOUT, folder, method=method, **known | fields), CPU)


def pictures() -> list[Pixels]:
    image = photo_like()[0]
    return [image, image[:120], image[:, :90].copy(), image[::-1].copy(), image[:64, :64]]


@pytest.fixture(scope="module", params=["semantic", "vitmatte", "vitmatte with a companion"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Matter:
    folder = tmp_path_factory.mktemp("matting")
    classes = segformer(folder / "classes", CLASSES)
    if request.param == "semantic":
        return load(classes, "semantic", world="toyland")
    companions = {"semantic": Weights(source=str(classes))} if "companion" in request.param else {}
    return load(vitmatte(folder / "vitmatte"), "vitmatte", world="toyland", companions=companions)


def test_a_batch_of_several_shapes_gives_the_cutouts_of_single_runs(model: Matter) -> None:
    together = model.run([task_of(Kind.CUTOUT, image) for image in pictures()], Steps())
    for image, found in zip(pictures(), together, strict=True):
        cut, mask = outcome(found).pictures
        alone = outcome(model.run([task_of(Kind.CUTOUT, image)], Steps())[0]).pictures[1]
        assert (cut.role, mask.role) == (Role.CUTOUT, Role.MASK)
        assert cut.pixels.shape == (*image.shape[:2], 4)
        assert np.abs(mask.pixels.astype(int) - alone.pixels).max() <= 1


def test_the_world_is_told_and_a_missing_picture_fails_alone(model: Matter) -> None:
    missing, found = model.run([task_of(Kind.CUTOUT, None), task_of(Kind.CUTOUT, pictures()[0])], Steps())
    assert isinstance(missing, InvalidInput)
    assert "toyland" in outcome(found).detail["note"]


def test_pictures_beyond_the_working_size_come_back_whole(model: Matter) -> None:
    image = photo_like(1_300)[0][:, :700].copy()
    (found,) = model.run([task_of(Kind.CUTOUT, image)], Steps())
    assert outcome(found).pictures[1].pixels.shape == (1_300, 700)


# ------------------------------------------------------------------------------------------------ by classes


def test_the_things_of_drawn_scenes_are_cut_out() -> None:
    model = families.load(Catalogue.load().default(Kind.CUTOUT, world="toyworld"), CPU)
    rng = np.random.default_rng(17)
    scenes = [render(sample_spec(rng), rng) for _ in range(6)]
    found = model.run([task_of(Kind.CUTOUT, scene.image) for scene in scenes], Steps())
    assert WORLD[FIRST_OBJECT_CLASS] == "house"
    overlaps = []
    for scene, one in zip(scenes, found, strict=True):
        mask, truth = outcome(one).pictures[1].pixels > 127, scene.instances > 0
        overlaps.append((mask & truth).sum() / max((mask | truth).sum(), 1))
    assert np.mean(overlaps) > 0.9


def test_without_named_things_all_but_the_background_is_foreground(tmp_path: Path) -> None:
    folder = segformer(tmp_path / "classes", ("background", "cat", "dog"))
    model = load(folder, "semantic", things=())
    assert isinstance(model, matting.SemanticMatter)
    assert model._foreground.indices == [1, 2]


def test_classes_that_are_all_foreground_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="name the foreground as `things`"):
        load(segformer(tmp_path / "classes", CLASSES), "semantic", things=())


# ------------------------------------------------------------------------------------------------ by ViTMatte


def test_a_trimap_leaves_a_band_about_the_outline_open() -> None:
    rough = np.zeros((200, 200), np.float32)
    rough[50:150, 50:150] = 1
    known = trimap(rough)
    assert (known[56:144, 56:144] == 255).all()
    assert (known[:44] == 0).all()
    assert (known[48:52, 60:140] == 128).all()
    assert set(np.unique(known)) == {0, 128, 255}


def test_a_trimap_takes_what_is_not_sure_as_open() -> None:
    assert (trimap(np.full((50, 50), 0.6, np.float32)) == 128).all()
    assert (trimap(np.ones((50, 50), np.float32)) == 255).all()


class Half(torch.nn.Module):
    """Stands in for ViTMatte: every pixel is 0.25, padding included."""

    dtype = torch.float32

    def forward(self, pixel_values: torch.Tensor) -> Any:
        assert pixel_values.shape[1] == 4  # the picture and its trimap
        return type("Answer", (), {"alphas": torch.full_like(pixel_values[:, :1], 0.25)})


def test_only_the_open_band_is_the_networks(tmp_path: Path) -> None:
    model = load(vitmatte(tmp_path / "vitmatte"), "vitmatte")
    model.network.net = Half()
    image = np.full((100, 150, 3), (210, 215, 220), np.uint8)
    image[30:70, 50:100] = (160, 30, 20)
    mask = outcome(model.run([task_of(Kind.CUTOUT, image)], Steps())[0]).pictures[1].pixels
    assert (mask[36:64, 56:94] == 255).all()
    assert (mask[:24] == 0).all()
    assert (mask[30, 55:95] == 64).all()


# ------------------------------------------------------------------------------------------------ folders


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    classes, matte = segformer(tmp_path / "classes", CLASSES), vitmatte(tmp_path / "matte")
    spoil(classes, "classifier.weight")
    spoil(matte, "matting_head.matting_convs.3.bias", np.nan)
    with pytest.raises(ModelUnavailable, match="not finite"):
        load(classes, "semantic")
    with pytest.raises(ModelUnavailable, match="not finite"):
        load(vitmatte(tmp_path / "good"), "vitmatte", companions={"semantic": Weights(source=str(classes))})
    image = np.full((64, 96, 3), 220, np.uint8)
    image[20:40, 30:60] = (160, 30, 20)
    model = load(matte, "vitmatte")  # a grey picture has no outline for the network to settle
    (found,) = model.run([task_of(Kind.CUTOUT, image)], Steps())
    assert isinstance(found, ModelUnavailable)
    assert "not finite" in str(found)


def test_another_method_or_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="none of semantic, vitmatte"):
        load(tmp_path, "scissors")
    with pytest.raises(ModelUnavailable, match="model tiny"):
        load(segformer(tmp_path / "classes", CLASSES), "vitmatte")
