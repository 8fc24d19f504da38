"""The job records in Redis and the only legal moves between their states (`contract.py` is the law)."""

import redis

from pixelkiln_shared.ledger.connection import (
    async_redis_client,
    check_redis,
    check_writes,
    redis_client,
    redis_errors,
)
from pixelkiln_shared.ledger.contract import Ledger
from pixelkiln_shared.ledger.redis_ledger import RedisLedger
from pixelkiln_shared.settings import Settings

__all__ = [
    "Ledger",
    "RedisLedger",
    "async_redis_client",
    "check_redis",
    "check_writes",
    "open_ledger",
    "redis_client",
    "redis_errors",
]


def open_ledger(settings: Settings, *, client: redis.Redis | None = None) -> RedisLedger:
    """Return the ledger these settings name, over a client of the caller's if he has one (`redis_client`)."""
    # So long without a sweep: Redis was away (see `RedisLedger`), and a lease may have lapsed for want of a
    # heartbeat. Where no worker sweeps every second, an API does every five.
    away_s = max(10.0, settings.lease_s - settings.heartbeat_s)
    return RedisLedger(client or redis_client(settings), retention_s=settings.retention_s, away_s=away_s)
