"""The peer of P12, run by the Python of its own environment: `p12_peer.py FOLDER REPEATS`.

Encodes the id maps `*.npy` of a folder with pycocotools and prints, as JSON by scene, the median times in
milliseconds and a digest of what came out.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def planes_of(ids: Any, numbers: Any) -> Any:
    """Return the map as pycocotools takes it: HWN, uint8, column after column."""
    return np.asfortranarray((ids[..., None] == numbers).astype(np.uint8))


def document(ids: Any, numbers: Any) -> tuple[str, list[dict[str, Any]]]:
    """Return the annotations of a map as JSON, and before that."""
    mask = import_module("pycocotools.mask")
    runs = mask.encode(planes_of(ids, numbers))
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "segmentation": {"size": list(ids.shape), "counts": run["counts"].decode("ascii")},
            "bbox": [int(side) for side in box],
            "area": int(area),
            "iscrowd": 0,
        }
        for number, run, box, area in zip(
            numbers.tolist(), runs, mask.toBbox(runs), mask.area(runs), strict=True
        )
    ]
    return json.dumps({"annotations": annotations}, separators=(",", ":")), annotations


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1_000)
    return statistics.median(times[1:])


def measure(ids: Any, repeats: int) -> dict[str, Any]:
    """Return the figures of one map."""
    mask = import_module("pycocotools.mask")
    numbers = np.unique(ids)
    numbers = numbers[numbers > 0]
    planes = planes_of(ids, numbers)
    facts = [[one["segmentation"]["counts"], one["bbox"], one["area"]] for one in document(ids, numbers)[1]]
    return {
        "encode_ms": median_ms(lambda: mask.encode(planes), repeats),
        "document_ms": median_ms(lambda: document(ids, numbers), repeats),
        "digest": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
    }


def main() -> None:
    """Measure every map of the folder."""
    folder, repeats = Path(sys.argv[1]), int(sys.argv[2])
    found = {path.stem: measure(np.load(path), repeats) for path in sorted(folder.glob("*.npy"))}
    print(json.dumps({"version": version("pycocotools"), "scenes": found}))


if __name__ == "__main__":
    main()
