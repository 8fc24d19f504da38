"""A worker in a process whose memory really ends; prints what became of its jobs.

Linux refuses the process more address space than it had after its imports and `ROOM_MB`, and torch's own
allocator is what runs out. A job takes the megabytes that its options say, and an economizing model half.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Picture, Task, Watch
from pixelkiln_worker.firing import fire
from pixelkiln_worker.workshop import Workshop
from tests.worker_processes import new_job, stub_spec
from tests.workshops import workshop

ROOM_MB = 1_000
MIB = 1_048_576


def block(megabytes: float) -> torch.Tensor:
    """Allocate; nothing is written, so that a machine short of memory can run this."""
    return torch.empty(int(megabytes * MIB), dtype=torch.uint8)


class Hungry:
    """Weights of `weights_mb`; each job takes what it asks for, times `share`."""

    def __init__(self, weights_mb: float, tried: list[int]) -> None:
        self.weights: torch.Tensor | None = block(weights_mb)
        self.footprint_bytes = 0
        self.identity: dict[str, Any] = {}
        self.max_rows = 8
        self.share = 1.0
        self.tried = tried

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Hold the memory of all jobs at once."""
        self.tried.append(len(batch))
        taken = [block(task.spec.input["options"]["mb"] * self.share) for task in batch]
        watch.step(1, 1)
        del taken
        return [Outcome(pictures=(Picture(pixels=np.zeros((8, 8, 3), np.uint8)),)) for _ in batch]

    def close(self) -> None:
        """Give the weights back."""
        self.weights = None


class Thrifty(Hungry):
    """Can do with half the memory, once."""

    def economize(self) -> bool:
        """See `families.contract.Frugal`."""
        self.share, before = 0.5, self.share
        return self.share < before


def entry(name: str, weights_mb: int) -> ModelEntry:
    """Return the stub's entry under another name."""
    stub = Catalogue.load(stub=True).get("stub")
    return stub.model_copy(update={"id": name, "defaults": {**stub.defaults, "mb": weights_mb}})


def run(shop: Workshop, ledger: Any, *specs: JobSpec) -> list[str]:
    """Run the jobs; return for each `succeeded`, or its error's code and message."""
    ledger.submit([new_job(spec) for spec in specs])
    fire(shop)
    records = [ledger.get(spec.id) for spec in specs]
    return [
        " ".join(json.loads(record.error).values()) if record.error else record.status for record in records
    ]


def main() -> None:
    """Run one case after the other, in one process."""
    torch.set_num_threads(1)
    block(1)
    entries = [entry("plain", 1), entry("heavy", 500), entry("thrifty", 1), entry("huge", 3_000)]
    tried: list[int] = []

    def load(entry: ModelEntry, device: Device) -> Hungry:
        family = Thrifty if entry.id == "thrifty" else Hungry
        return family(entry.defaults["mb"], tried)

    with workshop({f"generate.{one.id}": one for one in entries}, load) as (shop, ledger, _):
        told: dict[str, Any] = {"warm": run(shop, ledger, stub_spec(model="plain", mb=1))}
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM_MB * MIB, resource.RLIM_INFINITY))
        tried.clear()
        told["batch"] = run(shop, ledger, *(stub_spec(str(i), model="plain", mb=300) for i in range(8)))
        told["batch_sizes"] = tried.copy()
        told["too_large"] = run(shop, ledger, stub_spec(model="plain", mb=2_000))
        told["after"] = run(shop, ledger, stub_spec(model="plain", mb=300))
        told["beside"] = run(shop, ledger, stub_spec(model="heavy", mb=1))
        told["needs_the_room_of_another"] = run(shop, ledger, stub_spec(model="plain", mb=700))
        told["resident"] = shop.residency.resident
        told["thrifty"] = run(shop, ledger, stub_spec(model="thrifty", mb=1_400))
        told["huge"] = run(shop, ledger, stub_spec(model="huge", mb=1))
        told["at_last"] = run(shop, ledger, stub_spec(model="plain", mb=300))
    print(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)  # with so little room, taking Python apart may fail in ways that nobody asks about


if __name__ == "__main__":
    main()
