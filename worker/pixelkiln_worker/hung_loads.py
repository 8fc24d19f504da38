"""Models whose loading hung. Who learns it must end, so a file tells the process that follows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

SHORTEST_REST_S = 60.0  # of a model whose loading hung, however short its time limit was
_PREFIX = "hung-"


def note(folder: Path, model_id: str) -> None:
    """Note that a model's loading hung just now; a disk that refuses is no error."""
    with suppress(OSError):
        (folder / f"{_PREFIX}{quote(model_id, safe='')}").touch()


def lately(folder: Path, rest_s: float) -> Mapping[str, float]:
    """Return the models whose loading hung within the last `rest_s` seconds, and how much of that is left."""
    left: dict[str, float] = {}
    for noted in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            rest_left_s = rest_s - (time.time() - noted.stat().st_mtime)
            if rest_left_s > 0:
                left[unquote(noted.name.removeprefix(_PREFIX))] = min(rest_left_s, rest_s)
            else:
                noted.unlink()
    return left
