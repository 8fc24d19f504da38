"""Background removal with no weights, for pictures of a thing on a plain-ish ground.

What differs from the ground that the picture's frame shows is probably the thing; GrabCut then decides. It
knows no things: of a crowded picture it returns what stands out. The result says so.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from skimage.filters import threshold_otsu
from skimage.segmentation import slic

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import alpha, grabcut, regions
from pixelkiln_worker.families.contract import Outcome, Pixels, Task
from pixelkiln_worker.families.methods import PictureMethod
from pixelkiln_worker.families.segments import shrink

WORK_PX = 480
_FRAME_SHARE = 0.04
"""Width of the frame whose colours are the ground's, as a share of the shorter side."""
_COLOURS = 6
_RARE = 0.06
"""A colour of less than this share of the frame is a thing that touches it, not the ground."""
_CORNER = 0.8
_ONE_SIDE = 0.9
"""The same for one of which this share lies on one side, away from the corners (beyond `_CORNER`)."""
_CELLS = 400
_TEXTURE = 3.0
"""Steps in Lab between neighbouring cells that are no edge."""
_LIKE_GROUND = 6.0
"""What differs this little from the ground is ground, even inside a thing: the hole of a handle."""
_LEAST_CONTRAST = 10.0
_NOTE = "what stands out from the picture's frame; a classical method that knows no things"

Map = NDArray[np.float32]


def foreground(image: Pixels) -> Map:
    """Return how much each pixel belongs to the foreground, at the picture's size."""
    small = shrink(image, WORK_PX)
    standing_out = stand_out(small)
    level = float(threshold_otsu(standing_out)) if np.ptp(standing_out) > 0 else 1.0
    found = _filled(grabcut.decide(small, _trimap(standing_out, level)), standing_out > level / 3)
    return alpha.refined(image, found.astype(np.float32))


def stand_out(image: Pixels) -> Map:
    """Return how far each pixel is from the ground, HW, about 0 to 1.

    The ground is described by the few colours of the frame, and by a surface through it that may shade off
    to one side, as in a studio; a pixel that fits one of them is ground. Of the others, those count more that
    cannot be reached from the frame without crossing an edge (geodesic saliency, Wei et al., ECCV 2012).
    """
    lab = np.asarray(cv2.GaussianBlur(regions.to_lab(image), (0, 0), 1.2))
    frame = _frame(lab.shape[:2])
    colour = np.minimum(_from_colours(lab, frame), _from_surface(lab, frame))
    behind_edges = _from_frame(lab, colour) * ((colour - _LIKE_GROUND) / _LIKE_GROUND).clip(0, 1)
    distance = (colour + behind_edges) / 2
    height, width = distance.shape
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    central = np.exp(-(rows**2 + columns**2) / 2).astype(np.float32)
    scale = max(float(np.quantile(distance, 0.98)), _LEAST_CONTRAST)
    return np.asarray((distance / scale).clip(0, 1) * (0.6 + 0.4 * central), np.float32)


def _frame(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    wide = max(2, round(min(shape) * _FRAME_SHARE))
    frame = np.ones(shape, bool)
    frame[wide:-wide, wide:-wide] = False
    return frame


def _from_colours(lab: Map, frame: NDArray[np.bool_]) -> Map:
    """Return the distance to the nearest of the frame's colours."""
    samples = lab[frame]
    cv2.setRNGSeed(1)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    colours = min(_COLOURS, len(samples))
    _, which, centres = cv2.kmeans(samples, colours, np.empty(0), stop, 2, cv2.KMEANS_PP_CENTERS)
    labels = np.full(frame.shape, -1)
    labels[frame] = which.ravel()
    rows, columns = np.mgrid[-1 : 1 : frame.shape[0] * 1j, -1 : 1 : frame.shape[1] * 1j]
    sides = np.argmax(np.stack([-rows, rows, -columns, columns]), axis=0)
    sides[(np.abs(rows) > _CORNER) & (np.abs(columns) > _CORNER)] = 4
    usual = int(np.bincount(which.ravel()).argmax())
    nearest = np.full(frame.shape, np.inf, np.float32)
    for number, centre in enumerate(centres):
        mine = labels == number
        one_side = max(np.bincount(sides[mine], minlength=5)[:4]) > _ONE_SIDE * mine.sum()
        if number == usual or not (one_side or mine.sum() < _RARE * len(samples)):
            nearest = np.minimum(nearest, np.linalg.norm(lab - centre, axis=2))
    return nearest


def _from_surface(lab: Map, frame: NDArray[np.bool_]) -> Map:
    """Return the distance to a quadratic surface through the frame, refitted without what lies far off it."""
    height, width = frame.shape
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(rows), rows, columns, rows * columns, rows**2, columns**2], -1)
    here, seen = terms[frame], lab[frame]
    kept = np.ones(len(seen), bool)
    for _ in range(4):
        surface, *_ = np.linalg.lstsq(here[kept], seen[kept], rcond=None)
        off = np.linalg.norm(here @ surface - seen, axis=1)
        kept = off <= max(2.0, 2.5 * float(np.median(off)))
    return np.asarray(np.linalg.norm(terms @ surface - lab, axis=2), np.float32)


def _from_frame(lab: Map, colour: Map) -> Map:
    """Return the least sum of colour steps on a way from the frame, cell by cell, HW in units of Lab.

    A cell at the frame costs what it already differs from the ground, so that a thing may touch the frame.
    """
    cells = slic(lab, n_segments=_CELLS, compactness=1, convert2lab=False, start_label=0, channel_axis=-1)
    count = int(cells.max()) + 1
    area = np.bincount(cells.ravel(), minlength=count).clip(1)
    means = np.stack([np.bincount(cells.ravel(), lab[..., c].ravel(), count) / area for c in range(3)], 1)
    off = np.bincount(cells.ravel(), colour.ravel(), count) / area
    beside = [(cells[:, :-1].ravel(), cells[:, 1:].ravel()), (cells[:-1].ravel(), cells[1:].ravel())]
    one, two = (np.concatenate(ends) for ends in zip(*beside, strict=True))
    pairs = np.unique(np.stack([one, two], 1)[one != two], axis=0)
    steps = np.linalg.norm(means[pairs[:, 0]] - means[pairs[:, 1]], axis=1)
    rim = np.unique(np.concatenate([cells[0], cells[-1], cells[:, 0], cells[:, -1]]))
    start = np.full(len(rim), count)
    costs = np.concatenate([(steps - _TEXTURE).clip(0), off[rim]]) + 1e-6  # 0 would be no border at all
    ends = np.concatenate([pairs[:, 0], start]), np.concatenate([pairs[:, 1], rim])
    graph = csr_array((costs, ends), shape=(count + 1, count + 1))
    return np.asarray(dijkstra(graph, directed=False, indices=count)[cells], np.float32)


def _trimap(standing_out: Map, level: float) -> NDArray[np.uint8]:
    """Say what is known before GrabCut: what hardly differs is ground, what differs most is not."""
    likely = standing_out > level
    trimap = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[standing_out < 0.35 * level] = cv2.GC_BGD
    core = cv2.erode((standing_out > 1.5 * level).astype(np.uint8), np.ones((7, 7), np.uint8))
    trimap[core > 0] = cv2.GC_FGD
    trimap[_frame(standing_out.shape) & ~likely] = cv2.GC_BGD
    return trimap


def _filled(mask: grabcut.Mask, unlike_ground: NDArray[np.bool_]) -> grabcut.Mask:
    """Fill the holes in the mask through which it is not the ground that shows."""
    count, holes = cv2.connectedComponents((~mask).astype(np.uint8), connectivity=4)
    rim = np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])
    unlike = np.bincount(holes.ravel(), unlike_ground.ravel(), count)
    filled = unlike > np.bincount(holes.ravel(), minlength=count) / 2
    filled[np.unique(rim)] = filled[0] = False
    return np.asarray(mask | filled[holes])


class Cutter(PictureMethod):
    """GrabCut, started from what differs from the frame."""

    def answer(self, task: Task, image: Pixels) -> Outcome:
        """Cut out a picture's foreground."""
        return alpha.outcome(image, foreground(image), {"method": "grabcut", "note": _NOTE})


def load(entry: ModelEntry, device: Device) -> Cutter:
    """Return the method; it runs on the CPU whatever the device."""
    cv2.setNumThreads(device.threads)
    return Cutter(entry, "grabcut")
