"""What is done when a worker process has died: it leaves the fleet, and others have its jobs at once."""

from __future__ import annotations

import time

import structlog

from pixelkiln_shared.errors import LeaseLost, RedisUnavailable
from pixelkiln_shared.fleet import Fleet
from pixelkiln_shared.ledger import RedisLedger, open_ledger, redis_client
from pixelkiln_shared.settings import Settings
from pixelkiln_worker.presence import Presence, base_folder

log = structlog.get_logger(__name__)

LOOK_S = 1.0  # a look is a listing and a try of a lock a file; Redis hears of it only when somebody died
AWAY_S = 5.0  # while Redis does not answer, each try may hold the launcher up for its time limit


class Burials:
    """Buries the children of this launcher, and all on this machine whose launcher died with them.

    Raises:
        Misconfigured: the folder of the spool cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._presence = Presence(base_folder(settings.spool_dir), settings.redis_url)
        self._next_at = 0.0

    def look(self, *, at_once: bool = False) -> None:
        """Bury who died and was not buried, if it is time to look again."""
        if time.monotonic() < self._next_at and not at_once:
            return
        pause_s = LOOK_S
        try:
            # Whoever started it, if he lives, has yet to see whether it was asked to drain.
            self._presence.bury_dead(lambda worker: self.bury(worker, keep_wish=True))
        except RedisUnavailable as error:
            log.warning("Redis is away: the dead are buried later", error=error.message)
            pause_s = AWAY_S
        self._next_at = time.monotonic() + pause_s

    def bury(self, worker: str, *, blame: bool = True, keep_wish: bool = False) -> bool:
        """Let others have what a worker holds, and strike it off; return whether it was asked to drain.

        Args:
            worker: its name in the fleet.
            blame: judge its jobs as those of a process that died; else they are given back.
            keep_wish: leave a worker that was asked to drain to its launcher.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        with redis_client(self._settings) as client:
            ledger, fleet = open_ledger(self._settings, client=client), Fleet(client)
            unwanted = fleet.unwanted(worker)
            if not (unwanted and keep_wish):
                fleet.leave(worker)
            jobs = _judge(ledger, worker) if blame else _give_back(ledger, worker)
            if not jobs:
                return unwanted
            log.warning("took back the jobs of a worker", worker=worker, jobs=jobs, blame=blame)
            # Only now: Celery would double the memory of a launcher that never needs it.
            from pixelkiln_shared.bells import CeleryBells, make_app

            with make_app(self._settings) as app:
                CeleryBells(app, client).ring(ledger.waiting())
        return unwanted


def _judge(ledger: RedisLedger, worker: str) -> int:
    held = ledger.lapse(worker)
    if held:
        ledger.reap()
    return held


def _give_back(ledger: RedisLedger, worker: str) -> int:
    given = 0
    for job_id, attempt in ledger.held_by(worker):
        try:
            ledger.release(job_id, attempt)
            given += 1
        except LeaseLost:  # it ended just now
            continue
    return given
