"""Who sees to it that as many bells hang as jobs wait."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from pixelkiln_shared.bells import Bells
from pixelkiln_shared.ledger.contract import Ledger
from pixelkiln_worker.loops import Loop

RING_S = 5.0


class Ringer:
    """Tops the bells of some lanes up to the jobs that wait there, every few seconds and when nudged.

    `on_count` hears how many jobs wait in each of these lanes whenever they were counted.
    """

    def __init__(self, ledger: Ledger, bells: Bells, lanes: Collection[str]) -> None:
        self.bells = bells
        self._ledger = ledger
        self._lanes = lanes
        self._wanted = self._surplus = False
        self.on_count: Callable[[Mapping[str, int]], None] = lambda waiting: None
        self.loop = Loop("ringer", self.ring, RING_S)

    def nudge(self) -> None:
        """Ring soon; many calls before it happens are one."""
        self._wanted = True
        self.loop.nudge()

    def hush(self) -> None:
        """Take surplus bells away soon: one was heard and nothing waited."""
        self._surplus = True
        self.loop.nudge()

    def ring(self) -> None:
        """Ring now; or, after a bell was heard for nothing, take surplus bells away.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        surplus, wanted = self._surplus, self._wanted or not self._surplus
        self._surplus = self._wanted = False
        before: dict[str, int] = {}
        if surplus:
            before = self._waiting()
            self.bells.hush(before)
        now = self._waiting()
        if not wanted:
            # Only what is new: a bell for a job nobody may take yet would be heard in vain, again and again.
            now = {lane: count for lane, count in now.items() if count > before[lane]}
        self.bells.ring(now)

    def _waiting(self) -> dict[str, int]:
        waiting = {lane.lane: lane.waiting for lane in self._ledger.lanes()}
        mine = {lane: waiting.get(lane, 0) for lane in self._lanes}
        self.on_count(mine)
        return mine
