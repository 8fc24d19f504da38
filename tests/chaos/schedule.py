"""Which faults strike, and when: drawn from a seed, so that a run can be had again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Kind(StrEnum):
    """What can happen. The first six are goal G1's, the others prove that the checker sees what it must."""

    WORKER_GROUP = "worker_group"  # SIGKILL to a launcher and its children
    WORKER_DEVICE = "worker_device"  # SIGKILL to one device process; its launcher starts another
    REDIS_KILL = "redis_kill"  # SIGKILL to redis-server, started again on the same files
    REDIS_FREEZE = "redis_freeze"  # SIGSTOP for `lasts_s`
    API_KILL = "api_kill"  # SIGKILL while a POST is under way
    REAPER_KILL = "reaper_kill"  # SIGKILL to the process that holds the lock of the sweep
    ZOMBIE = "zombie"  # SIGSTOP to a device process until its leases have run out, then SIGCONT
    MUTE = "mute"  # the bells of all lanes are lost, all that are rung for `lasts_s`
    LINK = "link"  # what is between the workers and Redis resets, swallows, delays, ... for `lasts_s`


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault, `at_s` seconds after the clients began.

    `pick` chooses among those it can strike (a worker, a mode of the link): a number in [0, 1).
    """

    at_s: float
    kind: Kind
    lasts_s: float = 0.0
    pick: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large a run is: its jobs, its length in seconds, and how often each fault strikes.

    Every job must have ended `settle_s` after the last fault. `s3_share` is the share of S3 calls that fail,
    `poison` the number of jobs that kill whoever runs them.
    """

    jobs: int
    seconds: float
    workers: int
    clients: int
    lease_s: float
    heartbeat_s: float
    longest_freeze_s: float
    settle_s: float
    worker_kills: int
    redis_kills: int
    freezes: int
    api_kills: int
    reaper_kills: int
    zombies: int
    mutes: int
    links: int
    poison: int
    s3_share: float

    def scaled(self, jobs: int, seconds: float | None = None) -> Size:
        """Return a run of so many jobs with faults in proportion, each kind at least once."""
        share = jobs / self.jobs
        counts = ("worker_kills", "redis_kills", "freezes", "api_kills", "reaper_kills", "zombies", "mutes")
        fewer = {name: max(1, round(getattr(self, name) * share)) for name in (*counts, "links", "poison")}
        fewer["worker_kills"] = max(2, fewer["worker_kills"])
        return replace(self, jobs=jobs, seconds=seconds or max(60.0, self.seconds * share), **fewer)


# Goal G1 of the reliability goals, with the settings a worker has by default.
FULL = Size(
    jobs=10_000,
    seconds=1_800.0,
    workers=4,
    clients=8,
    lease_s=15.0,
    heartbeat_s=5.0,
    longest_freeze_s=30.0,
    settle_s=60.0,
    worker_kills=200,
    redis_kills=20,
    freezes=20,
    api_kills=20,
    reaper_kills=10,
    zombies=10,
    mutes=10,
    links=20,
    poison=10,
    s3_share=0.10,
)

# What every change is tried with: the same faults on shorter leases, done within three minutes.
CUT = Size(
    jobs=300,
    seconds=60.0,
    workers=2,
    clients=4,
    lease_s=4.0,
    heartbeat_s=1.0,
    longest_freeze_s=4.0,
    settle_s=60.0,
    worker_kills=10,
    redis_kills=2,
    freezes=1,
    api_kills=2,
    reaper_kills=1,
    zombies=1,
    mutes=1,
    links=2,
    poison=1,
    s3_share=0.05,
)

# Enough for each mutant of the product to be caught, and without one clean.
PROOF = replace(
    CUT,
    jobs=120,
    seconds=25.0,
    settle_s=25.0,
    worker_kills=4,
    redis_kills=0,
    freezes=0,
    api_kills=0,
    reaper_kills=0,
    zombies=3,
    links=0,
    s3_share=0.0,
)

_FIRST_S = 3.0  # the first jobs are on their way then
_MUTE_S = 3.0
_SPREAD = 0.95  # of the run's length; the clients go on a little longer than the faults


def schedule(seed: int, size: Size) -> list[Fault]:
    """Return the faults of a run in the order of time; the same seed and size give the same ones."""
    dice = random.Random(f"pixelkiln-chaos-{seed}")
    faults = [_draw(dice, kind, size) for kind in _kinds(size)]
    if size.mutes:  # the last jobs are sent now: no later submit rings for those that lose their bells
        faults.append(Fault(at_s=size.seconds - 1.0, kind=Kind.MUTE, lasts_s=_MUTE_S))
    return sorted(faults, key=lambda fault: fault.at_s)


def _kinds(size: Size) -> Sequence[Kind]:
    groups = size.worker_kills // 2
    counts = {
        Kind.WORKER_GROUP: groups,
        Kind.WORKER_DEVICE: size.worker_kills - groups,
        Kind.REDIS_KILL: size.redis_kills,
        Kind.REDIS_FREEZE: size.freezes,
        Kind.API_KILL: size.api_kills,
        Kind.REAPER_KILL: size.reaper_kills,
        Kind.ZOMBIE: size.zombies,
        Kind.MUTE: max(0, size.mutes - 1),
        Kind.LINK: size.links,
    }
    return [kind for kind, count in counts.items() for _ in range(count)]


def _draw(dice: random.Random, kind: Kind, size: Size) -> Fault:
    at_s = dice.uniform(_FIRST_S, max(_FIRST_S, size.seconds * _SPREAD))
    lasts_s = {
        Kind.REDIS_FREEZE: dice.uniform(1.0, size.longest_freeze_s),
        Kind.ZOMBIE: size.lease_s * dice.uniform(1.3, 2.0),
        Kind.LINK: dice.uniform(0.5, size.longest_freeze_s),
        Kind.MUTE: dice.uniform(0.1, _MUTE_S),
    }.get(kind, 0.0)
    return Fault(at_s=round(at_s, 3), kind=kind, lasts_s=round(lasts_s, 3), pick=dice.random())
