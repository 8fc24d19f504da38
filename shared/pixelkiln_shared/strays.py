"""The dead-letter list of the queues: what hung there and was no bell, kept for whoever wonders who sent it.

No job is among it, for no job hangs in a queue. It is the newest few, each cut short, for a week.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import cast

import redis
from pydantic import AwareDatetime, BaseModel

from pixelkiln_shared.keys import STRAYS, STRAYS_KEPT, STRAYS_S
from pixelkiln_shared.ledger import redis_errors

TEXT_BYTES = 4_000  # enough to see whose it is; a hundred of them are half a megabyte


class Stray(BaseModel):
    """One message that is no bell.

    Attributes:
        at: when a worker took it from its queue, by the worker's clock.
        queue: the lane.
        why: what is wrong with it.
        size_bytes: how long it is.
        text: how it begins, at most `TEXT_BYTES` of it; what is no UTF-8 is escaped.
    """

    at: AwareDatetime
    queue: str
    why: str
    size_bytes: int
    text: str


class Strays:
    """The list in Redis.

    Args:
        client: made by `redis_client`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def keep(self, queue: str, message: bytes, why: str, *, at: datetime) -> None:
        """Put a message on the list.

        Raises:
            RedisUnavailable: Redis does not answer or cannot write.
        """
        text = message[:TEXT_BYTES].decode("utf-8", "backslashreplace")
        stray = Stray(at=at, queue=queue, why=why, size_bytes=len(message), text=text)
        with redis_errors(), self._client.pipeline(transaction=False) as pipe:
            pipe.lpush(STRAYS, stray.model_dump_json())
            pipe.ltrim(STRAYS, 0, STRAYS_KEPT - 1)
            pipe.expire(STRAYS, STRAYS_S)
            pipe.execute()

    def newest_first(self) -> Sequence[Stray]:
        """Return what is kept.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        with redis_errors():
            kept = cast(list[str], self._client.lrange(STRAYS, 0, -1))
        return [Stray.model_validate_json(one) for one in kept]
