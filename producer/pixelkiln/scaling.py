"""How long what waits will take, how many workers that needs, and which are not needed. No I/O here.

All of it is arithmetic on one moment: the lanes as the ledger counts them, what a lane's work was learned to
cost, and the workers as they last reported themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pixelkiln_shared.costs import Cost
from pixelkiln_shared.fleet import WorkerInfo, serves
from pixelkiln_shared.jobs import model_of
from pixelkiln_shared.ledger.contract import LaneStats


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """One moment of an installation, and what follows from it. Times are seconds from that moment."""

    lanes: Mapping[str, LaneStats] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    workers: Sequence[WorkerInfo] = ()

    # ------------------------------------------------------------------------------------- lanes

    def servable(self, lane: str) -> bool:
        """Whether a ready worker serves the lane and could load its model the last time it tried."""
        return any(serves(info, lane) for info in self.workers)

    def waiting_s(self, lane: str) -> float | None:
        """Return how long one worker would run what waits in a lane; None when its cost is not learned."""
        work_s, stats = self._work_s(lane), self.lanes.get(lane)
        return None if work_s is None else (stats.work if stats else 0) * work_s

    # ------------------------------------------------------------------------------------- workers

    def desired_workers(self, target_s: float) -> int:
        """Return how many workers finish what waits within `target_s`, and no fewer than are at work now.

        A lane whose cost is not learned counts as one worker. At least 1 while anything waits or runs, and
        never more than there are such jobs.
        """
        at_work = sum(info.state != "draining" and bool(info.running) for info in self.workers)
        waiting = [one.lane for one in self.lanes.values() if one.waiting]
        seconds = [self.waiting_s(lane) for lane in waiting]
        known_s = sum(one for one in seconds if one is not None)
        jobs = sum(one.waiting + one.running for one in self.lanes.values())
        return min(max(1, at_work, math.ceil(known_s / target_s) + seconds.count(None)), jobs)

    def safe_to_stop(self, target_s: float) -> list[str]:
        """Return workers that can be stopped, all of them together, without loss.

        They held no job at their last report. Ready ones are named, the youngest first and those with a
        model that is waited for last, as long as `desired_workers` are left and every lane in which jobs
        wait keeps a worker, if it has one; of draining ones every one that is through.
        """
        waiting = [one.lane for one in self.lanes.values() if one.waiting]
        left = [info for info in self.workers if info.state == "ready"]
        desired, stopped = self.desired_workers(target_s), []
        idle = sorted(
            (info for info in left if not info.running),
            key=lambda info: (_is_warm(info, waiting), -info.started_at.timestamp(), info.id),
        )
        for info in idle:
            others = [one for one in left if one is not info]
            if len(others) < desired:
                break
            if all(_any_serves(others, lane) for lane in waiting if serves(info, lane)):
                left = others
                stopped.append(info.id)
        return stopped + [one.id for one in self.workers if one.state == "draining" and not one.running]

    # ------------------------------------------------------------------------------------- jobs

    def waiting_ends_in_s(self, lane: str, *, ahead: int, own: int) -> float | None:
        """Return when a waiting job ends; None when its lane's cost is unknown or nobody serves it.

        What runs in the lane and what is `ahead` there is shared among the workers that serve it; a worker
        that serves k lanes with waiting jobs gives each a k-th. Then comes its own work, and before all of it
        the loading of the model where no such worker has it.
        """
        work_s, hands = self._work_s(lane), self._hands(lane)
        if work_s is None or not hands:
            return None
        before = ahead + self._running_work(lane)
        return self._loading_s(lane) + (before / hands + own) * work_s

    def running_ends_in_s(
        self, lane: str, *, own: int, elapsed_s: float, step: int = 0, steps: int = 0
    ) -> float | None:
        """Return when a job ends that runs since `elapsed_s`; None when nothing tells.

        By its own progress as soon as there is some; else it ends with all that runs in its lane, for it is
        unknown which of that shares its batch.
        """
        if 0 < step <= steps:
            return elapsed_s * (steps - step) / step
        work_s = self._work_s(lane)
        if work_s is None:
            return None
        servers = max(1, sum(serves(info, lane) for info in self.workers))
        together = max(own, self._running_work(lane) / servers)
        return max(0.0, together * work_s - elapsed_s)

    # ------------------------------------------------------------------------------------- inside

    def _work_s(self, lane: str) -> float | None:
        return self.costs.get(lane, Cost()).work_s

    def _running_work(self, lane: str) -> int:
        stats = self.lanes.get(lane)
        return stats.running_work if stats else 0

    def _hands(self, lane: str) -> float:
        """How many workers' whole time the lane gets."""
        busy = {one.lane for one in self.lanes.values() if one.waiting} | {lane}
        servers = [info for info in self.workers if serves(info, lane)]
        return sum(1 / sum(serves(info, other) for other in busy) for info in servers)

    def _loading_s(self, lane: str) -> float:
        loaded = any(serves(info, lane) and _is_warm(info, [lane]) for info in self.workers)
        return 0.0 if loaded else self.costs.get(lane, Cost()).load_s or 0.0


def _is_warm(info: WorkerInfo, lanes: Sequence[str]) -> bool:
    """Whether a model of these lanes is loaded."""
    return any(model_of(lane) in info.resident for lane in lanes)


def _any_serves(workers: Sequence[WorkerInfo], lane: str) -> bool:
    return any(serves(info, lane) for info in workers)
