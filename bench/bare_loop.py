"""`python -m bench.bare_loop`: the bare batched loop, in a process that has nothing else to do.

It reads orders from standard input, a JSON line each, and answers each with a line: the seconds it took. An
order holds `stages`, one or two lists of job specs as JSON, and `pictures`, the files that the first stage
works on (none when it makes its own). Each batch goes through all stages before the next one begins; a second
stage works on the pictures of the first. Models are loaded before the clock starts. Nothing is encoded or
stored, and there is no queue.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixelkiln_shared import pictures
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.settings import settings
from pixelkiln_worker import device, families
from pixelkiln_worker.families.contract import Model, Nobody, Outcome, Pixels, Task


class Loop:
    """The models of this process, loaded when first named, on the device that a worker would choose."""

    def __init__(self) -> None:
        self._catalogue = Catalogue.load(settings().catalogue, stub=settings().stub)
        self._place = device.pick(settings())
        self._models: dict[str, Model] = {}

    def run(self, order: dict[str, Any]) -> float:
        """Do an order; return the seconds it took, from the first batch to the last."""
        stages = [[JobSpec.model_validate(spec) for spec in stage] for stage in order["stages"]]
        given = [pictures.decode(Path(name).read_bytes()) for name in order["pictures"]]
        models = [self._model(stage[0].model) for stage in stages]
        size = min(model.max_rows for model in models)
        began = time.monotonic()
        for start in range(0, len(stages[0]), size):
            images = given[start : start + size]
            for model, stage in zip(models, stages, strict=True):
                images = _batch(model, stage[start : start + size], images)
        self._finish()
        return time.monotonic() - began

    def _model(self, name: str) -> Model:
        if name not in self._models:
            self._models[name] = families.load(self._catalogue.get(name), self._place)
        return self._models[name]

    def _finish(self) -> None:
        """Wait for the device: a GPU may still be at work when the last call has returned."""
        torch: Any = sys.modules.get("torch")
        if torch is not None and self._place.kind == "cuda":
            torch.cuda.synchronize()


def _batch(model: Model, specs: Sequence[JobSpec], images: Sequence[Pixels]) -> list[Pixels]:
    """Run one batch; return the first picture of each job that made one."""
    given: list[dict[str, Pixels]] = [{"image": image} for image in images] or [{} for _ in specs]
    tasks = [Task(spec=spec, images=images) for spec, images in zip(specs, given, strict=True)]
    made = []
    for outcome in model.run(tasks, Nobody()):
        if not isinstance(outcome, Outcome):
            raise outcome
        made += [picture.pixels for picture in outcome.pictures[:1]]
    return made


def main() -> None:
    """Answer orders until standard input ends."""
    loop = Loop()
    for line in sys.stdin:
        print(json.dumps({"seconds": loop.run(json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
