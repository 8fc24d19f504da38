"""A workshop with a handle on each of its parts, and a model that does what the test says."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.jobs import JobSpec, Result
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind, Role
from pixelkiln_shared.ledger.contract import Record
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_shared.testing.storage import MemoryStorage
from pixelkiln_worker import imaging
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Picture, Segment, Segmentation, Task, Watch
from pixelkiln_worker.firing import fire
from pixelkiln_worker.workshop import Workshop
from tests.worker_processes import TENANT, new_job
from tests.workshops import workshop

RED = np.full((8, 8, 3), (255, 0, 0), np.uint8)


def paint(batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
    watch.step(1, 1)
    return [outcome_of(task) for task in batch]


def outcome_of(task: Task) -> Outcome:
    if task.image is None:
        return Outcome(pictures=(Picture(pixels=RED, seed=task.spec.input["seed"]),))
    ids = np.ones(task.image.shape[:2], np.uint16)
    return Outcome(segmentation=Segmentation(ids=ids, segments=(Segment(id=1, label="all", category=1),)))


@dataclass
class Brush:
    """A model whose `run` the test sets; `batches` are the prompts it was handed."""

    run_batch: Callable[[Sequence[Task], Watch], list[Outcome | Exception]] = paint
    batches: list[list[str]] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    footprint_bytes: int = 0
    identity: dict[str, Any] = field(default_factory=lambda: {"revision": "r1"})
    max_rows: int = 8

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        self.batches.append([task.spec.input.get("prompt", "") for task in batch])
        self.images += [task.image for task in batch]
        return self.run_batch(batch, watch)

    def close(self) -> None:
        pass


@dataclass
class House:
    """A workshop, with a handle on each of its parts."""

    ledger: MemoryLedger
    storage: MemoryStorage
    brush: Brush
    shop: Workshop
    rung: list[int]

    def submit(self, *specs: JobSpec) -> list[str]:
        self.ledger.submit([new_job(spec) for spec in specs])
        return [spec.id for spec in specs]

    def run(self, *specs: JobSpec) -> list[Record]:
        ids = self.submit(*specs)
        fire(self.shop)
        return [self.ledger.get(name) for name in ids]


@contextmanager
def firing_house() -> Iterator[House]:
    """Open a house that serves the stub and a segmenter, both by one brush."""
    brush, rung = Brush(), []
    catalogue = Catalogue.load(stub=True)
    lanes = {lane: catalogue.lanes[lane] for lane in ("generate.stub", "segment.classical-otsu")}

    def load(entry: ModelEntry, device: Device) -> Brush:
        return brush

    with workshop(lanes, load, lambda: rung.append(1)) as (shop, ledger, storage):
        yield House(ledger, storage, brush, shop, rung)


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def stored(house: House, key: str = "t/uploads/u1") -> dict[str, Any]:
    """Put a picture into the store; return the reference to it."""
    data = imaging.png_of(RED)
    house.storage.put(key, data, media_type="image/png")
    return {"object": key, "sha256": hashlib.sha256(data).hexdigest(), "width": 8, "height": 8}


def unloadable(entry: ModelEntry, device: Device) -> Brush:
    raise ModelUnavailable("no weights")


def segment_spec(image: dict[str, Any]) -> JobSpec:
    return JobSpec(
        id=new_id("job"), kind=Kind.SEGMENT, model="classical-otsu", tenant=TENANT, input={"image": image}
    )


def code_of(record: Record) -> str:
    return str(json.loads(record.error or "{}").get("code"))


def roles(record: Record) -> list[Role]:
    return [artifact.role for artifact in Result.model_validate_json(record.result or "").artifacts]
