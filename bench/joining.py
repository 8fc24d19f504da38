"""Whether rows should join and leave a running batch at each step, or ride in whole batches.

A plain simulation of one device and one model. Whole batches: when the device is free it takes up to eight
waiting jobs that ask for as many steps as the oldest, and runs them to the end. Joining: before each step it
takes in as many waiting jobs as there are places, whatever their steps, and lets go who is done. A step of n
rows costs `fixed + row * n`; so do the work before the first step (the prompt) and after the last (decoding),
together `EDGE_STEPS` steps' worth, once for all rows that come or go together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from bench.results import Result, compared

PLACES = 8
EDGE_STEPS = 2
LOADS = (0.3, 0.6, 0.9, 1.1)
JOBS, FULL_JOBS = 2_000, 10_000
MIXES = {"20 steps": (20,), "10 to 50 steps": (10, 20, 30, 50)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What a step costs, in seconds: with n rows `fixed_s + row_s * n`."""

    name: str
    fixed_s: float
    row_s: float

    def step_s(self, rows: int) -> float:
        """Return the time of a step."""
        return self.fixed_s + self.row_s * rows if rows else 0.0


# Mostly overhead; as `toyworld` on two processors, from its speed in batches; a row that fills the device.
DEVICES = (
    Device(name="40 + 5 ms a row", fixed_s=0.040, row_s=0.005),
    Device(name="18 + 7.5 ms a row", fixed_s=0.018, row_s=0.0075),
    Device(name="5 + 40 ms a row", fixed_s=0.005, row_s=0.040),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """A job: when it comes, in seconds, and how many steps it asks for."""

    at_s: float
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """From a job's coming to its end, in seconds; and jobs a second from the first to the last."""

    p50_s: float
    p95_s: float
    per_s: float


def run(rounds: int, full: bool) -> list[Result]:
    """Simulate; a round is another trace, and the ratio is how much joining would gain in the p95."""
    rows = []
    for device in DEVICES:
        for mix, steps in MIXES.items():
            for load in LOADS:
                traces = [
                    trace(device, steps, load=load, jobs=FULL_JOBS if full else JOBS, seed=seed)
                    for seed in range(rounds)
                ]
                pairs = [
                    (figures(one, whole(device, one)), figures(one, joining(device, one))) for one in traces
                ]
                rows.append(_row(device, mix, load, pairs))
    return rows


def trace(device: Device, steps: Sequence[int], *, load: float, jobs: int, seed: int) -> list[Wish]:
    """Return Poisson arrivals; `load` is a share of what full batches of such jobs would get done."""
    random, at_s, wishes = Random(seed), 0.0, []
    mean_steps = sum(steps) / len(steps) + EDGE_STEPS
    per_s = load * PLACES / (mean_steps * device.step_s(PLACES))
    for _ in range(jobs):
        at_s += random.expovariate(per_s)
        wishes.append(Wish(at_s=at_s, steps=random.choice(steps)))
    return wishes


def whole(device: Device, wishes: Sequence[Wish]) -> list[float]:
    """Serve in whole batches; return when each job ended."""
    ended, waiting, now_s = [0.0] * len(wishes), deque(range(len(wishes))), 0.0
    while waiting:
        now_s = max(now_s, wishes[waiting[0]].at_s)
        steps = wishes[waiting[0]].steps
        batch: list[int] = []
        for place in waiting:
            if wishes[place].at_s > now_s or len(batch) == PLACES:
                break
            if wishes[place].steps == steps:
                batch.append(place)
        for place in batch:
            waiting.remove(place)
        now_s += device.step_s(len(batch)) * (steps + EDGE_STEPS)
        for place in batch:
            ended[place] = now_s
    return ended


def joining(device: Device, wishes: Sequence[Wish]) -> list[float]:
    """Serve step by step; return when each job ended."""
    ended, waiting, now_s = [0.0] * len(wishes), deque(range(len(wishes))), 0.0
    left: dict[int, int] = {}
    while waiting or left:
        if not left:
            now_s = max(now_s, wishes[waiting[0]].at_s)
        come = 0
        while waiting and len(left) < PLACES and wishes[waiting[0]].at_s <= now_s:
            place = waiting.popleft()
            left[place] = wishes[place].steps
            come += 1
        now_s += device.step_s(come) * EDGE_STEPS / 2 + device.step_s(len(left))
        left = {place: steps - 1 for place, steps in left.items()}
        gone = [place for place, steps in left.items() if not steps]
        now_s += device.step_s(len(gone)) * EDGE_STEPS / 2
        for place in gone:
            ended[place] = now_s
            del left[place]
    return ended


def figures(wishes: Sequence[Wish], ended: Sequence[float]) -> Figures:
    """Return what a user would feel."""
    took = sorted(end_s - wish.at_s for wish, end_s in zip(wishes, ended, strict=True))
    return Figures(
        p50_s=took[len(took) // 2],
        p95_s=took[int(0.95 * len(took))],
        per_s=len(took) / (max(ended) - wishes[0].at_s),
    )


Pair = tuple[Figures, Figures]


def _row(device: Device, mix: str, load: float, pairs: Sequence[Pair]) -> Result:
    def gain(of: Callable[[Figures], float]) -> float:
        ratios = sorted(of(joined) / of(batched) for batched, joined in pairs)
        return ratios[len(ratios) // 2]

    return compared(
        "joining",
        "p95 from submit to result in seconds: whole batches, and rows that join at steps",
        [(batched.p95_s, joined.p95_s) for batched, joined in pairs],
        peer_name=f"{device.name}, {mix}, load {load:g}",
        goal=0.0,
        caveat=f"simulated; joining has {gain(lambda one: one.p50_s):.2f} of the p50 and "
        f"{gain(lambda one: one.per_s):.2f} of the jobs a second",
        less_is_better=True,
    )
