"""COCO annotations. The expected strings were made by pycocotools 2.0 from the same masks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from pixelkiln_worker.annotations import coco, compressed, regions
from pixelkiln_worker.families.contract import Segment, Segmentation


def decoded(counts: str, size: list[int]) -> NDArray[np.bool_]:
    """Return the mask that a run-length code stands for."""
    runs = runs_of(counts)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size[1], size[0]).T


def runs_of(counts: str) -> list[int]:
    """Undo COCO's run-length code, one character at a time, as its description says."""
    runs: list[int] = []
    place = 0
    while place < len(counts):
        value, shift, more = 0, 0, True
        while more:
            code = ord(counts[place]) - 48
            value |= (code & 0x1F) << shift
            shift, more, place = shift + 5, bool(code & 0x20), place + 1
            if not more and code & 0x10:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def holed() -> NDArray[np.uint16]:
    ids = np.zeros((100, 120), np.uint16)
    ids[10:90, 20:100] = 1
    ids[30:60, 40:70] = 0
    return ids


def found_in(ids: NDArray[np.uint16], **score: float) -> Segmentation:
    numbers = sorted(set(np.unique(ids).tolist()) - {0})
    return Segmentation(
        ids=ids,
        segments=tuple(Segment(id=n, label=f"thing {n % 2}", category=n % 2 + 1, **score) for n in numbers),
    )


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        ([[1]], "01"),
        ([[0, 1], [1, 0]], "121"),
        ([[1, 1], [1, 1]], "04"),
        ([[0, 0, 0], [0, 1, 0], [0, 0, 0]], "414"),
    ],
)
def test_small_masks_have_the_known_code(mask: list[list[int]], counts: str) -> None:
    assert compressed(regions(np.array(mask, np.uint16))[1].counts) == counts


def test_a_mask_with_a_hole_has_the_known_code() -> None:
    counts = compressed(regions(holed())[1].counts)

    assert counts.startswith("jn1`2d000000000000000000000000000000000000000TN::FF::FF::FF:")
    digest = "58786bbc1fd038419fc31e62be9a56babf80796d2d06392c31463c3a0d4a135b"
    assert hashlib.sha256(counts.encode()).hexdigest() == digest


def test_long_runs_have_the_known_code() -> None:
    ids = np.zeros((3_000, 4_000), np.uint16)
    ids[5:2_990, 2_100:3_900] = 1

    assert compressed(regions(ids)[1].counts).startswith("U[XP6Ym2?000000")


def test_many_short_runs_have_the_known_code() -> None:
    rows, columns = np.mgrid[0:300, 0:200]
    ids = (rows * rows * 31 + columns * columns * 17 + rows * columns) % 97 % 7

    region = regions(ids.astype(np.uint16))[3]

    counts = compressed(region.counts)
    assert counts.startswith("11d00F0N0K1O01O5020:0]O0c00F0N0K1O01O5")
    digest = "52e2741f9d6d20f228d667c89e9c18aa12e5f01fa3fd7beabca0830d535340d2"
    assert hashlib.sha256(counts.encode()).hexdigest() == digest
    assert (region.area_px, region.bbox) == (8_607, (0, 0, 200, 300))


@pytest.mark.parametrize("run", [2**31 - 1, 2**31, 2**40])
def test_runs_longer_than_32_bits_have_a_code(run: int) -> None:
    counts = np.array([3, run, 5, 7, 1], np.int64)

    assert runs_of(compressed(counts)) == counts.tolist()


def test_an_empty_map_has_no_regions() -> None:
    assert regions(np.zeros((5, 7), np.uint16)) == {}


@pytest.mark.parametrize("seed", range(40))
def test_masks_survive_the_code(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    ids = rng.integers(0, rng.integers(1, 6), (height, width)).astype(np.uint16).repeat(3, 0).repeat(2, 1)

    for number, region in regions(ids).items():
        mask = ids == number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
        assert np.array_equal(decoded(compressed(region.counts), [*ids.shape]), mask)
        assert region.area_px == mask.sum()
        assert region.bbox == box


def test_the_document_is_coco() -> None:
    ids = holed()
    ids[:5, :7] = 2
    ids[95:, 110:] = 3

    document = coco(found_in(ids, score=0.12345678), regions(ids), file_name="job_1.png", version="1")

    assert document["images"] == [{"id": 1, "file_name": "job_1.png", "width": 120, "height": 100}]
    assert [c["name"] for c in document["categories"]] == ["thing 0", "thing 1"]
    assert [c["id"] for c in document["categories"]] == [1, 2]
    first, second, third = document["annotations"]
    assert (first["category_id"], second["category_id"], third["category_id"]) == (2, 1, 2)
    assert second["bbox"] == [0, 0, 7, 5]
    assert second["area"] == 35
    assert first["iscrowd"] == 0
    assert first["score"] == 0.123457
    assert first["segmentation"]["size"] == [100, 120]
    assert np.array_equal(decoded(**first["segmentation"]), ids == 1)


def test_a_segment_without_a_pixel_is_left_out() -> None:
    found = Segmentation(
        ids=holed(),
        segments=(Segment(id=1, label="a", category=1), Segment(id=9, label="b", category=2)),
    )

    document = coco(found, regions(found.ids), file_name="x.png", version="1")

    assert [annotation["id"] for annotation in document["annotations"]] == [1]
    assert "score" not in document["annotations"][0]
