"""What the routers share, made once a process and found in `app.state`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from pixelkiln.api.auth import Gate
from pixelkiln.api.events import Watcher
from pixelkiln.api.probe import Probe
from pixelkiln.gallery.thumbnails import Thumbnails
from pixelkiln.producer import Producer
from pixelkiln.scaling import Outlook
from pixelkiln_shared.costs import Costs
from pixelkiln_shared.fleet import Fleet, WorkerInfo, served_lanes
from pixelkiln_shared.ledger.contract import Ledger
from pixelkiln_shared.ledger.leases import LeaseCount
from pixelkiln_shared.ledger.outbox import RedisOutbox
from pixelkiln_shared.previews import Previews
from pixelkiln_shared.settings import Settings

FLEET_S = 1.0  # how old the list of workers may be: it is asked for with every job


class FleetCache:
    """The fleet, read at most once a second."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._read: tuple[float, list[WorkerInfo]] = (float("-inf"), [])

    def workers(self) -> list[WorkerInfo]:
        """Return the live workers."""
        at, workers = self._read
        if time.monotonic() - at > FLEET_S:
            workers = self._fleet.workers()
            self._read = (time.monotonic(), workers)
        return workers

    def drain(self, worker_id: str) -> WorkerInfo:
        """Ask a worker to drain; see `Fleet.drain`."""
        return self._fleet.drain(worker_id)

    def served_lanes(self) -> frozenset[str]:
        """Return the lanes that at least one ready worker serves."""
        return served_lanes(self.workers())


class Outlooks:
    """Lanes, costs and fleet together: read anew, or for a job's ETA as they were within the last second."""

    def __init__(self, ledger: Ledger, costs: Costs, fleet: FleetCache) -> None:
        self._ledger = ledger
        self._costs = costs
        self._fleet = fleet
        self._read: tuple[float, Outlook] = (float("-inf"), Outlook())

    def fresh(self) -> Outlook:
        """Return the moment as it is."""
        lanes = {one.lane: one for one in self._ledger.lanes()}
        outlook = Outlook(lanes=lanes, costs=self._costs.known(), workers=self._fleet.workers())
        self._read = (time.monotonic(), outlook)
        return outlook

    def recent(self) -> Outlook:
        """Return a moment at most `FLEET_S` ago: it is asked for with every job that is looked at."""
        at, outlook = self._read
        return outlook if time.monotonic() - at <= FLEET_S else self.fresh()


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """The parts behind the routes. `secret` signs cursors, sessions and a folder's links."""

    settings: Settings
    producer: Producer
    fleet: FleetCache
    outlooks: Outlooks
    gate: Gate
    watcher: Watcher
    probe: Probe
    outbox: RedisOutbox
    leases: Callable[[], LeaseCount]
    previews: Previews
    thumbnails: Thumbnails
    secret: bytes = field(repr=False)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Parts = Annotated[Services, Depends(_services)]
