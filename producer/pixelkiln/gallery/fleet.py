"""The page `/workers`: what each worker does with its device, and what waits in each lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from pixelkiln.api.auth import CurrentCaller
from pixelkiln.api.services import Parts
from pixelkiln.api.workers import shown
from pixelkiln.gallery.pages import frame, page
from pixelkiln.resources import WorkerResource
from pixelkiln.scaling import Outlook
from pixelkiln_shared.ledger.contract import LaneStats

SPENT = {
    "busy": ("busy_s", "ran models"),
    "load": ("load_s", "loaded models"),
    "held": ("idle_waiting_s", "waited for pictures or storage"),
    "idle": ("idle_no_work_s", "had no work"),
}
"""The parts of a device's time: the name of its colour, the field, and in words."""

JOBS_SHOWN = 8

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a bar: where it begins and how long it is, in percent of the whole."""

    name: str
    words: str
    begin: float
    share: float


@router.get("/workers")
def workers(parts: Parts, caller: CurrentCaller) -> Response:
    """Show the workers and the queues."""
    return page("workers.html", **_now(parts), spent=SPENT, **frame(parts))


@router.get("/workers/now")
def now(parts: Parts, caller: CurrentCaller) -> Response:
    """Return what changes on that page, for one that is open."""
    return page("fleet.html", **_now(parts))


def _now(parts: Parts) -> dict[str, Any]:
    outlook, target_s = parts.outlooks.recent(), parts.settings.scale_target_s
    fleet = [shown(info) for info in outlook.workers]
    spare = outlook.safe_to_stop(target_s)
    lanes = sorted(outlook.lanes.values(), key=lambda lane: (-lane.waiting, lane.lane))
    return {
        "fleet": [
            {
                "facts": worker,
                "spare": worker.id in spare,
                "spent": _spent(worker),
                "memory": _memory(worker),
                "age": duration((datetime.now(UTC) - worker.started_at).total_seconds()),
                "batches": sum(tally.batches for tally in worker.tallies.values()),
                "loads": sum(tally.loads for tally in worker.tallies.values()),
                "switches": sum(tally.switches for tally in worker.tallies.values()),
                "pictures": sum(tally.pictures for tally in worker.tallies.values()),
                "fill": _fill(worker),
                "jobs": worker.running[:JOBS_SHOWN],
                "more_jobs": max(0, len(worker.running) - JOBS_SHOWN),
            }
            for worker in fleet
        ],
        "lanes": [_lane(lane, outlook) for lane in lanes],
        "desired": outlook.desired_workers(target_s),
        "waiting": sum(lane.waiting for lane in lanes),
        "running": sum(lane.running for lane in lanes),
        "oldest": duration(max((lane.oldest_s for lane in lanes), default=0.0)),
        "duration": duration,
        "size": size,
    }


def _lane(lane: LaneStats, outlook: Outlook) -> dict[str, Any]:
    kind, _, model = lane.lane.partition(".")
    served, work_s = outlook.servable(lane.lane), outlook.waiting_s(lane.lane)
    return {"facts": lane, "kind": kind, "model": model, "served": served, "work_s": work_s}


def _spent(worker: WorkerResource) -> list[Part]:
    """Return how the device spent its time; of an older worker, that tells less, only the busy part."""
    seconds = [(name, words, getattr(worker.device_time, field)) for name, (field, words) in SPENT.items()]
    if not any(part[2] for part in seconds):
        seconds = [
            ("busy", SPENT["busy"][1], worker.busy_share),
            ("idle", "stood still", 1 - worker.busy_share),
        ]
    return _bar(seconds, sum(part[2] for part in seconds))


def _memory(worker: WorkerResource) -> list[Part]:
    """Return the loaded models as parts of the budget."""
    models = [("model", model.id, float(model.footprint_bytes)) for model in worker.loaded]
    return _bar(models, max(float(worker.memory_bytes), sum(model[2] for model in models)))


def _bar(amounts: Sequence[tuple[str, str, float]], whole: float) -> list[Part]:
    parts, begin = [], 0.0
    for name, words, amount in amounts:
        share = 100 * amount / whole if whole else 0.0
        parts.append(Part(name=name, words=words, begin=round(begin, 2), share=round(share, 2)))
        begin += share
    return parts


def _fill(worker: WorkerResource) -> float | None:
    """Return how full its batches were, in percent; None where it does not say."""
    known = [tally for tally in worker.tallies.values() if tally.batch_fill is not None and tally.batches]
    batches = sum(tally.batches for tally in known)
    return 100 * sum((t.batch_fill or 0.0) * t.batches for t in known) / batches if batches else None


def duration(seconds: float) -> str:
    """Say how long something took, in the two largest units: `3 d 4 h`, `12 s`."""
    whole = int(seconds)
    counts = [
        ("d", whole // 86_400),
        ("h", whole // 3_600 % 24),
        ("min", whole // 60 % 60),
        ("s", whole % 60),
    ]
    first = next((index for index, (_, count) in enumerate(counts) if count), 3)
    return " ".join(f"{count} {unit}" for unit, count in counts[first : first + 2] if count) or "0 s"


def size(count: float) -> str:
    """Say how many bytes something takes: `312 MB`, `24.0 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
