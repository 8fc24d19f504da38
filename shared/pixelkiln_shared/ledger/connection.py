"""How we reach Redis: time limits on everything, our own error for everything, a check at start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pixelkiln_shared import keys
from pixelkiln_shared.errors import Misconfigured, RedisFull, RedisUnavailable
from pixelkiln_shared.ledger.silence import ImpatientRedis
from pixelkiln_shared.settings import Settings

HEALTH_CHECK_S = 15  # an idle connection is tried before it is used again: half-open TCP costs one time limit
RETRIES = 2  # for cut connections, never for a silent Redis: a caller waits one time limit, not three.
# So a move may arrive twice: see the tokens of `claim.lua` and the repeats in `end_attempt.lua`.
RETRY_AFTER_S = 2.0
FULL_RETRY_AFTER_S = 30.0  # memory comes back when jobs end and are forgotten, or when somebody gives more
OLDEST = (6, 2)  # ZADD LT, scripts that replicate their effects

_NOT_LET_IN = "Redis refuses the password: it is missing or wrong"
# Redis answers, but not with what was asked. Scripts of older servers bury the word in a sentence.
_REFUSALS = {
    "OOM": "Redis is full and takes no writes",
    "READONLY": "Redis is a replica and takes no writes",
    "MISCONF": "Redis cannot save to its disk and takes no writes",
    "NOPERM": "Redis does not allow this user what Pixelkiln does",
    "LOADING": "Redis is loading its data",
    "BUSY": "Redis is busy with a script",
    "MASTERDOWN": "this replica of Redis has lost its primary",
    "NOREPLICAS": "Redis misses the replicas that it must write to",
    "CLUSTERDOWN": "the Redis cluster is down",
}
_REFUSING = {OutOfMemoryError: "OOM", ReadOnlyError: "READONLY", NoPermissionError: "NOPERM"}


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn what Redis and the network do to us into `RedisUnavailable`; a bug in a script stays one."""
    try:
        yield
    except AuthenticationError as error:
        raise RedisUnavailable(_NOT_LET_IN, retry_after_s=RETRY_AFTER_S) from error
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise RedisUnavailable(f"Redis does not answer: {error}", retry_after_s=RETRY_AFTER_S) from error
    except ResponseError as error:
        reason = _refusal(error)
        if reason is None:
            raise
        if reason == _REFUSALS["OOM"]:
            raise RedisFull(reason, retry_after_s=FULL_RETRY_AFTER_S) from error
        raise RedisUnavailable(reason, retry_after_s=RETRY_AFTER_S) from error


def _refusal(error: ResponseError) -> str | None:
    """Return why Redis refuses, or None for an error that is ours."""
    word = _REFUSING.get(type(error)) or next((word for word in _REFUSALS if word in str(error)), None)
    if word is not None:
        return _REFUSALS[word]
    return None if type(error) is ResponseError else f"Redis refuses: {error}"


def redis_client(
    settings: Settings, *, impatient: bool = False, connections: int | None = None
) -> redis.Redis:
    """Return a client for threads; it connects when first used. Text in, text out.

    Args:
        impatient: answer callers at once while Redis is silent, instead of letting each wait (`silence.py`).
        connections: open at most so many; who finds none free waits as long as for an answer, then gets the
            `ConnectionError` of Redis. Without it as many as threads call at once.
    """
    options = _options(settings)
    options["retry"] = redis.retry.Retry(_backoff(), RETRIES, supported_errors=(RedisConnectionError,))
    made = ImpatientRedis if impatient else redis.Redis
    if connections is None:
        return made.from_url(settings.redis_url, **options)
    return made.from_pool(
        redis.BlockingConnectionPool.from_url(
            settings.redis_url,
            max_connections=connections,
            timeout=settings.redis_timeout_s,
            **options,
        )
    )


def async_redis_client(settings: Settings) -> redis.asyncio.Redis:
    """Return a client for one event loop, with the same limits; `EventReader` wants one."""
    retry = redis.asyncio.retry.Retry(_backoff(), RETRIES, supported_errors=(RedisConnectionError,))
    return redis.asyncio.Redis.from_url(settings.redis_url, retry=retry, **_options(settings))


def check_redis(client: redis.Redis) -> list[str]:
    """Return what an operator should know about this Redis, a sentence each.

    Raises:
        Misconfigured: it may evict jobs when memory runs out, is too old for the scripts, or refuses our user
            or password.
        RedisUnavailable: it does not answer.
    """
    try:
        with redis_errors():
            facts = client.info()
            sync = _setting(client, "appendfsync")
    except RedisUnavailable as error:
        if isinstance(error.__cause__, AuthenticationError | NoPermissionError):
            raise Misconfigured(f"PIXELKILN_REDIS_URL: {error.message}") from error
        raise
    version = str(facts["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise Misconfigured(f"Redis {version} is too old: 6.2 or newer is needed")
    policy = facts["maxmemory_policy"]
    if policy != "noeviction":
        raise Misconfigured(f"Redis may throw jobs away: set `maxmemory-policy noeviction` (it is {policy})")
    if not facts["aof_enabled"]:
        return ["Redis keeps no append-only file: a restart may lose accepted jobs; set `appendonly yes`"]
    if sync != "always":
        return [f"appendfsync is {sync or 'unknown'}: a power cut may lose the last second of accepted jobs"]
    return []


def check_writes(client: redis.Redis) -> None:
    """Write a small key: a Redis may well answer and take no jobs.

    Raises:
        RedisUnavailable: with the reason.
    """
    with redis_errors():
        client.set(keys.PROBE, 1, ex=keys.PROBE_S)


def _setting(client: redis.Redis, name: str) -> str | None:
    try:
        found = cast(dict[str, str], client.config_get(name))
    except ResponseError:  # managed servers refuse CONFIG
        return None
    return found.get(name)


def _backoff() -> ExponentialWithJitterBackoff:
    return ExponentialWithJitterBackoff(base=0.05, cap=0.5)


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "decode_responses": True,
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK_S,
    }
