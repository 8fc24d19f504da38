"""Where a picture lies in SAM's input, and that masks come back to where they belong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from transformers import SamImageProcessorPil, SamProcessor

from pixelkiln_shared.kinds import Box, Point
from pixelkiln_worker.families.contract import Pixels
from pixelkiln_worker.families.marks import Marks
from pixelkiln_worker.families.promptable import painted
from pixelkiln_worker.families.sam import Frame, Sam, Stretcher
from tests.tiny_models import CPU, segment_task, segmenter_entry
from tests.tiny_networks import sam, sam2

SIZES = [(128, 128), (200, 90), (75, 300), (33, 64), (720, 481)]  # height, width


def blank(size: tuple[int, int]) -> Pixels:
    return np.zeros((*size, 3), np.uint8)


@pytest.fixture(scope="module", params=["sam", "sam2"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sam:
    make = {"sam": sam, "sam2": sam2}[request.param]
    folder: Path = make(tmp_path_factory.mktemp("sam") / request.param)
    return Sam.open(segmenter_entry(folder), CPU)


@pytest.mark.parametrize("size", SIZES)
def test_pictures_and_marks_lie_where_the_library_puts_them(size: tuple[int, int]) -> None:
    library = SamProcessor(
        SamImageProcessorPil(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128})
    )
    points = [(3.0, 7.0), (size[1] - 1.0, size[0] - 1.0)]
    box = (2.0, 4.0, size[1] - 2.0, size[0] - 3.0)
    theirs = library(
        blank(size), input_points=[[list(map(list, points))]], input_boxes=[[list(box)]], return_tensors="pt"
    )
    frame = Frame.of(blank(size), 128, padded=True)
    assert frame.inner == tuple(theirs["reshaped_input_sizes"][0].tolist())
    assert torch.allclose(frame.place(points), theirs["input_points"].reshape(-1, 2).float())
    assert torch.allclose(frame.place([box[:2], box[2:]]).flatten(), theirs["input_boxes"].flatten().float())


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_restored_as_the_library_does(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 32, 32)
    processor = SamImageProcessorPil(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128})
    frame = Frame.of(blank(size), 128, padded=True)
    theirs = processor.post_process_masks([logits[None]], [size], [frame.inner])[0][0]
    assert torch.equal(frame.restore(logits, size) > 0, theirs)


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_sent_through_the_input_comes_back(network: Sam, size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    image = np.stack([255 * columns / size[1], 255 * rows / size[0], 0 * rows], -1).astype(np.uint8)
    frame = network.encode([segment_task(image)], [image])[0].frame  # type: ignore[union-attr]
    [(_, pixels)] = network.network.pixel_values([image])
    back = frame.restore(pixels[0], size).numpy()
    for channel, (mean, deviation) in enumerate(((0.485, 0.229), (0.456, 0.224))):
        values = (back[channel] * deviation + mean) * 255
        assert np.abs(values - image[..., channel]).mean() < 1.5


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_drawn_over_the_prompt_covers_the_box(
    network: Sam, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that answers a box with just that box, at a quarter of the input's resolution."""
    box = Box(x0=size[1] * 0.25, y0=size[0] * 0.5, x1=size[1] * 0.75, y1=size[0] * 0.875)

    def draw(levels: object, prompt: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x0, y0, x1, y1 = (prompt["input_boxes"][0, 0] / 4).tolist()
        steps = torch.arange(network._side // 4) + 0.5
        across, down = torch.minimum(steps - x0, x1 - steps), torch.minimum(steps - y0, y1 - steps)
        depth = torch.minimum(down[:, None], across[None])  # a signed distance: its zero is the box's edge
        return torch.stack([depth - 9, depth, depth - 9])[None], torch.tensor([[0.1, 0.9, 0.2]])

    monkeypatch.setattr(network, "_decode", draw)
    image = blank(size)
    encoded = network.encode([segment_task(image)], [image])[0]
    logits, scores = network.propose(encoded, [Marks(box=box)]).best()  # type: ignore[arg-type]
    assert scores.tolist() == pytest.approx([0.9])
    ids = painted(encoded.frame, logits, np.array([7]), image)  # type: ignore[union-attr]
    truth = np.zeros(size, bool)
    truth[round(box.y0) : round(box.y1), round(box.x0) : round(box.x1)] = True
    pixel = max(1.0, max(size) / network._side)
    off = cv2.distanceTransform((truth ^ (ids == 7)).astype(np.uint8), cv2.DIST_C, 3).max()
    assert (ids == 7).any()
    assert off <= pixel


def test_smaller_masks_lie_on_larger_ones() -> None:
    frame = Frame.of(blank((64, 32)), 64, padded=True)
    logits = torch.full((2, 16, 16), -5.0)
    logits[0, 4:8, 2:6] = 5  # the small one, in the left half, which is the picture
    logits[1, :, :8] = 5
    ids = painted(frame, logits, np.array([1, 2]), blank((64, 32)))
    assert set(np.unique(ids)) == {1, 2}
    assert ids[24, 16] == 1
    assert (ids == 2).mean() > 0.8


def test_padding_is_cropped_from_the_networks_maps() -> None:
    frame = Frame.of(blank((50, 100)), 64, padded=True)
    assert frame.inner == (32, 64)
    assert frame.crop(torch.zeros(2, 16, 16)).shape == (2, 8, 16)
    assert Frame.of(blank((50, 100)), 64, padded=False).crop(torch.zeros(2, 16, 16)).shape == (2, 16, 16)


def test_our_processor_for_sam_2_resizes_and_normalises() -> None:
    facts = {"size": {"width": 8, "height": 8}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0]}
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, 16:] = 255
    values = Stretcher(facts)(images=image, return_tensors="pt").pixel_values
    assert values.shape == (1, 3, 8, 8)
    assert values[0, :, 4, 0].tolist() == pytest.approx([-2, -1, -0.5])
    assert values[0, :, 4, 7].tolist() == pytest.approx([2, 1, 0.5])
    image[:] = 255 * (np.arange(32) % 2)[None, :, None]  # finer than the input can show: a smooth grey
    grey = Stretcher(facts)(images=image, return_tensors="pt").pixel_values
    assert torch.allclose(grey[0, 2, :, 1:7], torch.zeros(8, 6), atol=0.05)


def test_objects_that_are_marked_differently_are_decoded_apart(network: Sam) -> None:
    image = blank((60, 90))
    encoded = network.encode([segment_task(image)], [image])[0]
    objects = [
        Marks(box=Box(x0=5, y0=5, x1=40, y1=40)),
        Marks(points=(Point(x=20, y=20), Point(x=70, y=50, positive=False))),
        Marks(box=Box(x0=10, y0=8, x1=80, y1=50), points=(Point(x=30, y=20),)),
        Marks(box=Box(x0=50, y0=5, x1=85, y1=40)),
    ]
    together = network.propose(encoded, objects)  # type: ignore[arg-type]
    for place, marks in enumerate(objects):
        alone = network.propose(encoded, [marks])  # type: ignore[arg-type]
        assert torch.allclose(together.logits[place], alone.logits[0], atol=1e-4)
        assert torch.allclose(together.scores[place], alone.scores[0], atol=1e-5)
