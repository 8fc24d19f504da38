"""Depth networks with random weights, at every picture's own size; what their numbers mean; stereo pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_shared.kinds import Kind, Role
from pixelkiln_worker.families import depth, stereo
from pixelkiln_worker.families.contract import Outcome, Pixels
from pixelkiln_worker.families.depth import DepthEstimator, nearness
from tests.tiny_models import CPU, Steps, photo_like, segformer
from tests.tiny_vision_models import (
    depth_anything,
    dpt_depth,
    entry_of,
    glpn,
    lose,
    outcome,
    padded_dpt,
    spoil,
    task_of,
    zoedepth,
)

SHAPES = {
    "dpt": dpt_depth,
    "padded_dpt": padded_dpt,
    "depth_anything": depth_anything,
    "glpn": glpn,
    "zoedepth": zoedepth,
}


def load(folder: Path, **fields: Any) -> DepthEstimator:
    return depth.load(entry_of("depth", Kind.DEPTH, folder, kinds=(Kind.DEPTH, Kind.STEREO), **fields), CPU)


def map_of(found: Outcome | Exception) -> np.ndarray:
    values = outcome(found).depth
    assert values is not None
    return values


def pictures() -> list[Pixels]:
    image = photo_like()[0]
    return [image, image[:120], image[:, :90].copy(), image[::-1].copy(), image[:64, :64]]


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DepthEstimator:
    save: Callable[[Path], Path] = SHAPES[request.param]
    return load(save(tmp_path_factory.mktemp(request.param) / "model"), world="toyland")


def test_a_batch_of_several_shapes_gives_the_depth_of_single_runs(model: DepthEstimator) -> None:
    watch = Steps()
    together = model.run([task_of(Kind.DEPTH, image) for image in pictures()], watch)
    assert watch.seen == [(1, 2), (2, 2)]
    for image, found in zip(pictures(), together, strict=True):
        alone = map_of(model.run([task_of(Kind.DEPTH, image)], Steps())[0])
        assert map_of(found).shape == image.shape[:2]
        assert map_of(found).dtype == np.float32
        assert np.abs(map_of(found) - alone).max() < 1e-3
        assert 0 <= map_of(found).min() < map_of(found).max() <= 1


def test_the_result_says_what_the_numbers_were(model: DepthEstimator) -> None:
    detail = outcome(model.run([task_of(Kind.DEPTH, pictures()[0])], Steps())[0]).detail
    far, near = detail["range"]
    assert detail["method"] == model.method
    assert far >= near if model.method == "metric" else far < near
    assert "toyland" in detail["note"]


def test_a_job_without_a_picture_fails_alone(model: DepthEstimator) -> None:
    missing, found = model.run([task_of(Kind.DEPTH, None), task_of(Kind.DEPTH, pictures()[0])], Steps())
    assert isinstance(missing, InvalidInput)
    assert map_of(found).shape == (200, 200)


def test_pictures_beyond_the_working_size_come_back_whole(model: DepthEstimator) -> None:
    image = photo_like(1_300)[0][:, :700]
    assert map_of(model.run([task_of(Kind.DEPTH, image)], Steps())[0]).shape == (1_300, 700)


def test_a_stereo_job_gives_both_views_an_anaglyph_and_the_depth(model: DepthEstimator) -> None:
    image = pictures()[1]
    found = outcome(model.run([task_of(Kind.STEREO, image, disparity=0.1)], Steps())[0])
    pair, glasses = found.pictures
    left, right = stereo.views(image, map_of(found), 20.0)
    assert (pair.role, glasses.role) == (Role.IMAGE, Role.IMAGE)
    assert np.array_equal(pair.pixels, np.hstack([left, right]))
    assert np.array_equal(glasses.pixels, stereo.anaglyph(left, right))
    assert found.detail["disparity_px"] == 20.0


class Ramp(torch.nn.Module):
    """Stands in for a network whose depth is the first channel of what it sees, at half the size."""

    dtype = torch.float32

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return type("Answer", (), {"predicted_depth": pixel_values[:, 0, ::2, ::2]})


@pytest.mark.parametrize("save", [dpt_depth, padded_dpt, glpn])
def test_depth_lies_where_the_picture_is(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    model = load(save(tmp_path / "model"), method="inverse")
    model.network.net = Ramp()
    image = np.zeros((100, 180, 3), np.uint8)
    image[30:70, 120:160] = 255
    values = map_of(model.run([task_of(Kind.DEPTH, image)], Steps())[0])
    rows, columns = np.nonzero(values > 0.5)
    assert (
        np.abs(
            np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]) - (30, 70, 120, 160)
        ).max()
        <= 3
    )


# ------------------------------------------------------------------------------------------------ the numbers


def test_inverse_depth_is_stretched_and_larger_is_nearer() -> None:
    raw = np.linspace(-3, 7, 10_000, dtype=np.float32).reshape(100, 100)
    scaled, far, near = nearness(raw, "inverse")
    assert far == pytest.approx(-2.95, abs=0.01)
    assert near == pytest.approx(6.95, abs=0.01)
    assert scaled[0, 0] == 0
    assert scaled[-1, -1] == 1
    assert scaled[50, 0] == pytest.approx(0.5, abs=0.01)


def test_metric_depth_is_turned_round_by_inverse_distance() -> None:
    raw = np.full((100, 100), 10.0, np.float32)
    raw[:30], raw[30:60] = 1.0, 2.0
    scaled, far, near = nearness(raw, "metric")
    assert (far, near) == (10.0, 1.0)
    assert [round(float(scaled[row, 0]), 3) for row in (0, 40, 80)] == [1.0, round(0.4 / 0.9, 3), 0.0]


def test_nearness_is_taken_as_it_is() -> None:
    raw = np.array([[-0.1, 0.2], [0.4, 1.3]], np.float32)
    scaled, far, near = nearness(raw, "nearness")
    assert np.allclose(scaled, [[0, 0.2], [0.4, 1]])
    assert (far, near) == (0.0, 1.0)


def test_a_few_wild_numbers_do_not_flatten_the_rest() -> None:
    raw = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (200, 1))
    raw[0, :100] = 1e6
    scaled, _, near = nearness(raw, "inverse")
    assert near == pytest.approx(1.0, abs=0.01)
    assert scaled[100, 100] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("method", ["inverse", "metric"])
def test_a_flat_picture_has_no_depth(method: str) -> None:
    scaled, _, _ = nearness(np.full((20, 20), 4.0, np.float32), method)
    assert np.isfinite(scaled).all()
    assert np.ptp(scaled) == 0


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        (dpt_depth, "inverse"),
        (depth_anything, "inverse"),
        (lambda folder: depth_anything(folder, depth_estimation_type="metric", max_depth=20), "metric"),
        (glpn, "metric"),
        (zoedepth, "metric"),
    ],
)
def test_what_the_numbers_mean_is_known_of_the_usual_networks(
    tmp_path: Path, save: Callable[[Path], Path], expected: str
) -> None:
    folder = save(tmp_path / "model")
    assert load(folder).method == expected
    assert load(folder, method="nearness").method == "nearness"


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    broken, short = dpt_depth(tmp_path / "broken"), glpn(tmp_path / "short")
    spoil(broken, "head.head.4.bias")
    lose(short, "decoder")
    with pytest.raises(ModelUnavailable, match="not finite"):
        load(broken)
    with pytest.raises(ModelUnavailable, match="incomplete"):
        load(short)


def test_another_method_or_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="none of inverse, metric, nearness"):
        load(tmp_path, method="feet")
    with pytest.raises(ModelUnavailable, match="model tiny"):
        load(segformer(tmp_path / "model"))
