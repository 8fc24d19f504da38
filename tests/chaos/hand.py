"""The hand that strikes: does the faults of a schedule to a stage, at their times."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar, cast

import redis

from pixelkiln_shared import keys
from pixelkiln_shared.bells import queue_key
from pixelkiln_shared.errors import RedisUnavailable
from pixelkiln_shared.fleet import Fleet
from pixelkiln_shared.keys import LedgerKey
from pixelkiln_shared.ledger import redis_client
from pixelkiln_shared.ledger.contract import MAX_STRIKES
from pixelkiln_shared.settings import Settings
from tests.chaos.clients import Traffic
from tests.chaos.proxy import Mode
from tests.chaos.recovery import JOBS
from tests.chaos.schedule import Fault, Kind
from tests.chaos.stage import Server, Stage

T = TypeVar("T")

LANES = ("generate.stub", "segment.classical-otsu")
_AIM_S = 5.0  # so long is waited for a target: a POST under way, a holder of the lock
_LOOK_S = 0.0005  # a POST takes a few milliseconds
_GLANCE_S = 0.3  # a frozen Redis must not put a kill off
_REDIS_DOWN_S = 0.5
_SPOILING = [mode for mode in Mode if mode is not Mode.PASS]


class Hand:
    """Strikes each fault once. Faults that last do so beside the others."""

    def __init__(self, stage: Stage, faults: Sequence[Fault], traffic: Traffic) -> None:
        self._stage = stage
        self._faults = faults
        self._traffic = traffic
        self._strikes: dict[Kind, Callable[[Fault], Sequence[str] | None]] = {
            Kind.WORKER_GROUP: self._worker_group,
            Kind.WORKER_DEVICE: self._worker_device,
            Kind.REDIS_KILL: self._redis_kill,
            Kind.REDIS_FREEZE: self._redis_freeze,
            Kind.API_KILL: self._api_kill,
            Kind.REAPER_KILL: self._reaper_kill,
            Kind.ZOMBIE: self._zombie,
            Kind.MUTE: self._mute,
            Kind.LINK: self._link,
        }
        settings = Settings(redis_url=stage.redis_url, redis_timeout_s=_GLANCE_S)
        self._client = redis_client(settings)
        self._fleet = Fleet(self._client)
        self._redis_lock = threading.Lock()
        self.missed = 0

    def strike_all(self) -> None:
        """Do every fault at its time; returns when the last one is over."""
        began = time.monotonic()
        threads = []
        for fault in self._faults:
            time.sleep(max(0.0, began + fault.at_s - time.monotonic()))
            thread = threading.Thread(target=self._strike, args=(fault,), name=fault.kind, daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        self._client.close()

    def _strike(self, fault: Fault) -> None:
        history = self._traffic.history
        history.add(-1, "fault", "invoke", fault.kind)
        jobs: Sequence[str] = ()
        try:
            jobs = self._strikes[fault.kind](fault) or ()
        except (TimeoutError, ProcessLookupError):
            self.missed += 1
        history.add(-1, "fault", "ok", fault.kind, seen={JOBS: list(jobs)})

    # ----------------------------------------------------------------------------------------------- faults
    # A kill returns the jobs that the process held, as far as Redis could say.

    def _worker_group(self, fault: Fault) -> list[str]:
        launcher = _chosen(_aimed(self._launchers), fault)
        children, holding = launcher.children(), self._holding()
        launcher.kill()
        for pid in children:
            _kill(pid)
        return [job_id for pid in children for job_id in holding.get(pid, ())]

    def _worker_device(self, fault: Fault) -> list[str]:
        pid, holding = _chosen(_aimed(self._devices), fault), self._holding()
        _kill(pid)
        return holding.get(pid, [])

    def _redis_kill(self, fault: Fault) -> None:
        with self._redis_lock:
            self._stage.redis.kill()
            time.sleep(_REDIS_DOWN_S)
            self._stage.start_redis()

    def _redis_freeze(self, fault: Fault) -> None:
        with self._redis_lock:
            self._stage.redis.signal(signal.SIGSTOP)
            time.sleep(fault.lasts_s)
            self._stage.redis.signal(signal.SIGCONT)

    def _api_kill(self, fault: Fault) -> None:
        _aimed(lambda: self._traffic.posting or None)
        self._stage.api.kill()

    def _reaper_kill(self, fault: Fault) -> list[str]:
        pid = _aimed(self._reaper)
        holding = self._holding()
        _kill(pid)
        return holding.get(pid, [])

    def _zombie(self, fault: Fault) -> None:
        pid = _chosen(_aimed(self._busy), fault)  # one with work in hand, that may publish when it wakes
        os.kill(pid, signal.SIGSTOP)
        time.sleep(fault.lasts_s)
        if pid in self._stage.device_pids():
            os.kill(pid, signal.SIGCONT)

    def _mute(self, fault: Fault) -> None:
        until = time.monotonic() + fault.lasts_s
        while time.monotonic() < until:
            with suppress(Exception):
                self._client.delete(*map(queue_key, LANES))
            time.sleep(0.01)

    def _link(self, fault: Fault) -> None:
        self._stage.link.mode = _chosen(_SPOILING, fault)
        time.sleep(fault.lasts_s)
        self._stage.link.mode = Mode.PASS

    def _launchers(self) -> list[Server] | None:
        """The launchers that have a worker which may be killed."""
        spared = self._spared()
        alive = [one for one in self._stage.launchers if one.children()]
        return [one for one in alive if spared.isdisjoint(one.children())] or None

    def _devices(self) -> list[int] | None:
        """The device processes that may be killed."""
        spared = self._spared()
        return [pid for pid in self._stage.device_pids() if pid not in spared] or None

    def _busy(self) -> list[int] | None:
        """Those of them that hold jobs right now."""
        holding = self._holding()
        return [pid for pid in self._devices() or [] if holding.get(pid)] or None

    def _spared(self) -> set[int]:
        """Who holds a job with two strikes: a third by mere chance would look like unfair blame."""
        with suppress(redis.RedisError):
            return {pid for pid, ids in self._holding().items() if any(map(self._struck_twice, ids))}
        return set()

    def _struck_twice(self, job_id: str) -> bool:
        strikes = cast(str | None, self._client.hget(LedgerKey.JOB + job_id, "strikes"))
        return int(strikes or 0) >= MAX_STRIKES - 1

    def _holding(self) -> dict[int, list[str]]:
        """Which process holds which jobs; empty while Redis is away."""
        found: dict[int, list[str]] = {}
        with suppress(redis.RedisError, RedisUnavailable):
            for info in self._fleet.workers():
                found[info.pid] = cast(list[str], self._client.hkeys(LedgerKey.HELD + info.id))
        return found

    def _reaper(self) -> int | None:
        """The process that holds the sweep's lock; a worker's id is `host-pid-random`."""
        with suppress(Exception):
            holder = self._client.get(keys.REAP_LOCK)
            pid = int(str(holder).split("-")[-2]) if holder else 0
            return pid if pid in self._stage.device_pids() else None
        return None


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _chosen(among: Sequence[T], fault: Fault) -> T:
    if not among:
        raise TimeoutError("nobody to strike")
    return among[int(fault.pick * len(among))]


def _aimed(look: Callable[[], T | None]) -> T:
    until = time.monotonic() + _AIM_S
    while time.monotonic() < until:
        found = look()
        if found is not None:
            return found
        time.sleep(_LOOK_S)
    raise TimeoutError("no target")
