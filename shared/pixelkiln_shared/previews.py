"""Rough pictures of jobs that still run: one small file a job in Redis, announced by a `preview` event."""

from __future__ import annotations

from typing import Any, cast

import redis
from redis.client import NEVER_DECODE

from pixelkiln_shared import keys
from pixelkiln_shared.events import emit
from pixelkiln_shared.ledger import redis_errors

MEDIA_TYPE = "image/webp"
SIDE_PX = 256  # the longest side: a card on the grid, and a few kilobytes


class Previews:
    """The newest preview of each job. Every method raises `RedisUnavailable` when Redis does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def put(self, job_id: str, webp: bytes, *, step: int, steps: int) -> None:
        """Replace the job's preview and tell whoever watches it; at most about once a second and job.

        Args:
            webp: a WebP file of at most `SIDE_PX` pixels a side.
            step: of `steps`, the step the picture shows.
        """
        with redis_errors():
            self._client.set(keys.preview(job_id), webp, ex=keys.PREVIEW_S)
        emit(self._client, job_id, "preview", {"job": job_id, "step": step, "steps": steps})

    def get(self, job_id: str) -> bytes | None:
        """Return the WebP file; None where there is none, or none any more."""
        client: Any = self._client
        with redis_errors():
            found = client.execute_command("GET", keys.preview(job_id), **{NEVER_DECODE: True})
        return cast("bytes | None", found)
