"""How many jobs run, and how many of them nobody takes back although their lease is over."""

from __future__ import annotations

from dataclasses import dataclass

import redis

from pixelkiln_shared.keys import LedgerKey
from pixelkiln_shared.ledger.connection import redis_errors

OVERDUE_S = 15.0  # three sweeps: a lease that nobody took back by then is nobody's


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseCount:
    """`held` leases are all there are; `overdue` of them ended more than `OVERDUE_S` ago."""

    held: int
    overdue: int


def count_leases(client: redis.Redis) -> LeaseCount:
    """Count the leases by Redis's clock; its work does not grow with their number.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    with redis_errors():
        seconds, _ = client.time()
        late = f"({(seconds - OVERDUE_S) * 1_000:.0f}"
        pipeline = client.pipeline(transaction=False)
        pipeline.zcard(LedgerKey.LEASES)
        pipeline.zcount(LedgerKey.LEASES, "-inf", late)
        held, overdue = pipeline.execute()
    return LeaseCount(held=held, overdue=overdue)
