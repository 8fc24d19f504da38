"""Cut any photograph into regions, with no weights: over-segment it, then merge what looks alike.

All functions take CIELAB pictures (HWC, float32, L in [0, 100]) and give label maps from 1.
Sources: Felzenszwalb and Huttenlocher 2004; SLIC, Achanta et al. 2012; watershed on the gradient, Beucher and
Lantuejoul 1979; merging by Ward's criterion, Ward 1963, weighed by the contrast along the shared border.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import segmentation

from pixelkiln_worker.families.contract import Pixels
from pixelkiln_worker.families.segments import Labels

Lab = NDArray[np.float32]

MERGE_LIMIT = 0.06
"""Unless a number is wished, merging stops where it would cost more than this (times the colours' spread)."""
MAX_AUTO_REGIONS = 40
_FLAT_SPREAD = 8.0  # Lab; in pictures flatter than this, what differs is noise


def calm_lab(image: Pixels) -> Lab:
    """Return HWC RGB uint8 as CIELAB (float32, L in [0, 100]), texture smoothed and edges kept."""
    return to_lab(np.asarray(cv2.bilateralFilter(image, 7, 25, 5), np.uint8))


def to_lab(image: Pixels) -> Lab:
    """Return HWC RGB uint8 as CIELAB: float32, L in [0, 100], a and b around 0."""
    return np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def felzenszwalb(lab: Lab, regions: int | None) -> Labels:
    """Graph-based regions, merged to `regions` or as far as they look alike."""
    pixels = lab.shape[0] * lab.shape[1]
    wished = regions or MAX_AUTO_REGIONS
    pieces = segmentation.felzenszwalb(
        lab / 100,
        scale=60 if wished > 64 else 120,
        sigma=0.8,
        min_size=max(4, pixels // (wished * 60)),
        channel_axis=-1,
    )
    return merge(pieces, lab, regions)


def slic(lab: Lab, regions: int | None) -> Labels:
    """SLIC superpixels, merged to `regions` or as far as they look alike."""
    count = max(400, 3 * (regions or 0))
    pieces = segmentation.slic(
        lab, n_segments=count, compactness=0.1, sigma=1, convert2lab=False, start_label=0, channel_axis=-1
    )
    return merge(pieces, lab, regions)


def watershed(lab: Lab, regions: int | None) -> Labels:
    """Basins of the colour gradient, merged to `regions` or as far as they look alike."""
    smooth = np.asarray(cv2.GaussianBlur(lab, (0, 0), 1.5))
    slopes = [cv2.Sobel(smooth, cv2.CV_32F, dx, dy) for dx, dy in ((1, 0), (0, 1))]
    gradient = np.sqrt(sum(np.square(slope).sum(-1) for slope in slopes))
    pieces = segmentation.watershed(gradient, markers=max(600, 3 * (regions or 0)), compactness=0.0)
    return merge(pieces - 1, lab, regions)


# ------------------------------------------------------------------------------------------------ merging


@dataclass(slots=True)
class _Border:
    length_px: float
    contrast: float  # summed Lab distance across the border


class _Graph:
    """Regions and the borders between them; merging two keeps both true."""

    def __init__(self, pieces: NDArray[np.intp], lab: Lab) -> None:
        flat = pieces.ravel()
        self.areas = np.bincount(flat).astype(np.float64)
        sums = [np.bincount(flat, lab[..., channel].ravel()) for channel in range(3)]
        self.means = np.stack(sums, axis=1) / np.maximum(self.areas, 1)[:, None]
        self.pixels = float(flat.size)
        self.thin_px = 0.02 * max(pieces.shape)
        self.borders: list[dict[int, _Border]] = [{} for _ in self.areas]
        for axis in (0, 1):
            self._add_borders(pieces, lab, axis)
        self.perimeters = [sum(border.length_px for border in around.values()) for around in self.borders]
        spread = np.square(lab - lab.mean((0, 1))).sum(-1).mean() ** 0.5
        self.limit = MERGE_LIMIT * max(float(spread), _FLAT_SPREAD)

    def _add_borders(self, pieces: NDArray[np.intp], lab: Lab, axis: int) -> None:
        """Measure the borders along one axis, a few pixels apart so that soft edges count in full."""
        gaps = np.arange(pieces.shape[axis] - 1)
        one, two = (np.take(pieces, gaps + side, axis) for side in (0, 1))
        crossing = one != two
        first, second = one[crossing], two[crossing]
        pair = np.minimum(first, second) * len(self.areas) + np.maximum(first, second)
        keys, inverse = np.unique(pair, return_inverse=True)
        lengths = np.bincount(inverse, minlength=len(keys))
        contrasts = np.bincount(inverse, _contrast(lab, axis)[crossing], minlength=len(keys))
        for key, length, contrast in zip(keys.tolist(), lengths.tolist(), contrasts.tolist(), strict=True):
            low, high = divmod(key, len(self.areas))
            border = self.borders[low].setdefault(high, _Border(0.0, 0.0))
            border.length_px += length
            border.contrast += contrast
            self.borders[high][low] = border

    def cost(self, a: int, b: int) -> float:
        """Return what merging a and b loses: Ward's growth in variance, weighed by the border's contrast."""
        one, two = self._weight(a), self._weight(b)
        ward = one * two / (one + two) / self.pixels
        difference = float(np.square(self.means[a] - self.means[b]).sum()) ** 0.5
        border = self.borders[a][b]
        return float((ward * difference * border.contrast / border.length_px) ** 0.5)

    def _weight(self, a: int) -> float:
        """Return the area of a, less for slivers: blurred edges leave thin rims that nobody asks for."""
        thickness = 2 * self.areas[a] / max(self.perimeters[a], 1)
        return float(self.areas[a] * min(1.0, thickness / self.thin_px))

    def merge(self, a: int, b: int) -> None:
        """Let a swallow b."""
        self.perimeters[a] += self.perimeters[b] - 2 * self.borders[a][b].length_px
        area = self.areas[a] + self.areas[b]
        self.means[a] = (self.means[a] * self.areas[a] + self.means[b] * self.areas[b]) / area
        self.areas[a] = area
        for other, border in self.borders[b].items():
            del self.borders[other][b]
            if other == a:
                continue
            shared = self.borders[a].setdefault(other, _Border(0.0, 0.0))
            shared.length_px += border.length_px
            shared.contrast += border.contrast
            self.borders[other][a] = shared
        self.borders[b] = {}


def merge(pieces: NDArray[Any], lab: Lab, regions: int | None) -> Labels:
    """Merge neighbouring pieces, cheapest first; return a label map from 1.

    Args:
        pieces: HW connected pieces, values from 0.
        lab: the picture the pieces cut.
        regions: stop at this many; None stops where the next merge would cost more than `MERGE_LIMIT`.
    """
    _, compact = np.unique(pieces, return_inverse=True)
    compact = compact.reshape(pieces.shape)
    graph = _Graph(compact, lab)
    count = len(graph.areas)
    parent = list(range(count))
    version = [0] * count
    heap = [(graph.cost(a, b), a, b, 0, 0) for a in range(count) for b in graph.borders[a] if a < b]
    heapq.heapify(heap)
    left = count
    while heap and left > (regions or 1):
        cost, a, b, version_a, version_b = heapq.heappop(heap)
        if (version[a], version[b]) != (version_a, version_b):
            continue
        if regions is None and cost > graph.limit and left <= MAX_AUTO_REGIONS:
            break
        graph.merge(a, b)
        parent[b] = a
        left -= 1
        version[a] += 1
        version[b] = -1
        for other in graph.borders[a]:
            low, high = min(a, other), max(a, other)
            heapq.heappush(heap, (graph.cost(low, high), low, high, version[low], version[high]))
    roots = np.array([_root(parent, index) for index in range(count)])
    _, numbers = np.unique(roots, return_inverse=True)
    return np.asarray(numbers[compact] + 1)


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        index = parent[index]
    return index


def _contrast(lab: Lab, axis: int, reach: int = 2) -> NDArray[np.float32]:
    """Return the Lab distance between the pixels `reach` to either side of each gap along `axis`."""
    gaps = np.arange(lab.shape[axis] - 1)
    before = np.take(lab, np.maximum(gaps - reach + 1, 0), axis)
    after = np.take(lab, np.minimum(gaps + reach, lab.shape[axis] - 1), axis)
    return np.asarray(np.sqrt(np.square(before - after).sum(-1)), np.float32)
