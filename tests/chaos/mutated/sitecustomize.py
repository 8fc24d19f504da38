"""Python imports this when it starts with this folder on its path: breaks the product as told.

Only the runs that prove the checker put it there; `CHAOS_MUTANT` names what breaks. Each mutant takes away
one thing that the promise rests on.

    reaper_off    lapsed leases are never taken back
    fencing_off   any attempt may move a job on, however old, and even one that has ended
    blame_off     a job whose worker dies alone gets no strike, so poison never ends
    bells_off     bells are rung when a job is submitted and never again
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def _replace_in(file: str, old: str, new: str) -> None:
    """Change the text of a Lua file on its way to Redis."""
    from pixelkiln_shared.ledger import scripts

    original = scripts.lua_file

    def changed(name: str) -> str:
        text = original(name)
        if name != file:
            return text
        if old not in text:
            raise RuntimeError(f"{file}.lua no longer has the line that this mutant changes")
        return text.replace(old, new)

    scripts.lua_file = changed


def reaper_off() -> None:
    """Sweeps do nothing but count what waits."""
    from pixelkiln_shared.ledger import redis_ledger
    from pixelkiln_shared.ledger.contract import Reaped

    redis_ledger.RedisLedger.reap = (  # type: ignore[method-assign]
        lambda self, *, limit=1_000: Reaped(lanes=self.waiting())
    )


def fencing_off() -> None:
    """An attempt's right to move its job on is not asked for."""
    rights = 'if job and job.attempt == tonumber(attempt) and (job.status == "running" or '
    _replace_in("prelude", rights + 'job.status == "canceling") then', "if job then")


def blame_off() -> None:
    """No strike ever counts."""
    _replace_in("reap", "return job.strikes >= MAX_STRIKES", "return false")


def bells_off() -> None:
    """Neither sweeps nor workers ring."""
    from pixelkiln_shared.bells import CeleryBells
    from pixelkiln_shared.ledger import redis_ledger

    original = CeleryBells.ring
    redis_ledger.RedisLedger.waiting = lambda self: {}  # type: ignore[method-assign]
    CeleryBells.ring = (  # type: ignore[method-assign]
        lambda self, waiting: original(self, waiting) if "pixelkiln.producer" in sys.modules else 0
    )


MUTANTS: dict[str, Callable[[], None]] = {
    made.__name__: made for made in (reaper_off, fencing_off, blame_off, bells_off)
}

if os.environ.get("CHAOS_MUTANT"):
    MUTANTS[os.environ["CHAOS_MUTANT"]]()
