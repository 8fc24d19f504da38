"""The job records in Redis and the only legal moves between their states (`contract.py` is the law)."""

from pixelkiln_shared.ledger.connection import async_redis_client, check_redis, redis_client, redis_errors
from pixelkiln_shared.ledger.contract import Ledger
from pixelkiln_shared.ledger.redis_ledger import RedisLedger
from pixelkiln_shared.settings import Settings

__all__ = [
    "Ledger",
    "RedisLedger",
    "async_redis_client",
    "check_redis",
    "open_ledger",
    "redis_client",
    "redis_errors",
]


def open_ledger(settings: Settings) -> RedisLedger:
    """Return the ledger these settings name; it connects when first used."""
    return RedisLedger(
        redis_client(settings), retention_s=settings.retention_s, away_s=max(10.0, settings.lease_s)
    )
