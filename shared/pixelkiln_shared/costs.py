"""What a lane's work costs, learned from the batches that ran: seconds of a device for each unit of work.

The workers tell what they measured, every few seconds; the averages live in Redis, so that a fleet scaled to
zero still knows them. They forget: after `BATCHES_KEPT` batches little is left of what came before, so a new
device or driver shows soon. Heterogeneous workers give the average over the work they did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import redis

from pixelkiln_shared import keys
from pixelkiln_shared.ledger.connection import redis_errors

BATCHES_KEPT = 16  # the weight of older batches shrinks by e with so many new ones: noise goes, changes show
_LOAD_WEIGHT = 0.5  # of the newest loading time: loads are rare and much alike

# A lane's value is "seconds work load_s": decayed sums of both, whose ratio is the cost, and a running mean.
# ARGV: batches kept, weight of a load; then per lane: lane, seconds, work, batches, seconds of a load or "".
_LEARN = """
for at = 3, #ARGV, 5 do
  local lane, old = ARGV[at], redis.call("HGET", KEYS[1], ARGV[at])
  local seconds, work, load = string.match(old or "0 0 -", "^(%S+) (%S+) (%S+)$")
  local keep = math.exp(-tonumber(ARGV[at + 3]) / tonumber(ARGV[1]))
  seconds = keep * seconds + ARGV[at + 1]
  work = keep * work + ARGV[at + 2]
  local newest = tonumber(ARGV[at + 4])
  if newest then
    local before = tonumber(load) or newest
    load = string.format("%.9g", before + tonumber(ARGV[2]) * (newest - before))
  end
  redis.call("HSET", KEYS[1], lane, string.format("%.9g %.9g %s", seconds, work, load))
end
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a worker measured in one lane since it told last: `work` took `seconds` in so many batches.

    `load_s` is how long its model took to load, None when it did not.
    """

    seconds: float = 0.0
    work: int = 0
    batches: int = 0
    load_s: float | None = None

    def __add__(self, later: Measured) -> Measured:
        return Measured(
            seconds=self.seconds + later.seconds,
            work=self.work + later.work,
            batches=self.batches + later.batches,
            load_s=self.load_s if later.load_s is None else later.load_s,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What is known of a lane: seconds for a unit of work, and to load its model; None: not yet."""

    work_s: float | None = None
    load_s: float | None = None


class Costs:
    """The learned costs of all lanes. Every method raises `RedisUnavailable` when Redis does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._learn = client.register_script(_LEARN)

    def learn(self, measured: Mapping[str, Measured]) -> None:
        """Add what was measured, by lane, in one atomic call."""
        if not measured:
            return
        arguments: list[str | float] = [BATCHES_KEPT, _LOAD_WEIGHT]
        for lane, one in measured.items():
            load_s = "" if one.load_s is None else one.load_s
            arguments += [lane, one.seconds, one.work, one.batches, load_s]
        with redis_errors():
            self._learn(keys=[keys.COSTS], args=arguments)

    def known(self) -> dict[str, Cost]:
        """Return what is known, by lane; one round trip."""
        with redis_errors():
            found = cast(dict[Any, Any], self._client.hgetall(keys.COSTS))
        return {_text(lane): _cost(_text(value)) for lane, value in found.items()}


def _cost(value: str) -> Cost:
    seconds, work, load_s = value.split(" ")
    return Cost(
        work_s=float(seconds) / float(work) if float(work) > 0 else None,
        load_s=None if load_s == "-" else float(load_s),
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
