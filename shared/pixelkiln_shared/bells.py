"""Bells: Celery messages that say only "lane X has work".

A bell carries no job. It is anonymous and disposable: a lost one costs seconds (whoever reaps rings again), a
surplus one costs a claim that finds nothing. So a lane's queue is topped up to what waits, never beyond
`CAP`, and what Flower and autoscalers see as the queue's depth is true up to that cap.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol
from uuid import uuid4

import redis
from celery import Celery
from kombu import Exchange, Queue

from pixelkiln_shared.errors import RedisUnavailable
from pixelkiln_shared.keys import CELERY_PREFIX
from pixelkiln_shared.settings import Settings

CAP = 1_000  # bells a lane: enough to wake any fleet, few enough that a bulk submit stays one round trip
BELL_TTL_S = 86_400  # a forgotten lane's bells do not outlive the day; the reaper rings again while jobs wait

# Adds one bell when fewer hang there than wanted; returns how many are missing then.
_ONE_MORE = """
local missing = ARGV[1] - redis.call("LLEN", KEYS[1])
if missing > 0 then
  redis.call("LPUSH", KEYS[1], ARGV[3])
  redis.call("EXPIRE", KEYS[1], ARGV[2])
end
return missing - 1
"""
_TASK_ID = "{task-id}"
_DELIVERY_TAG = "{delivery-tag}"


class Bells(Protocol):
    """Where bells are rung."""

    def ring(self, waiting: Mapping[str, int]) -> int:
        """Top each lane's queue up to `min(waiting, CAP)` bells; return how many were added.

        Raises:
            RedisUnavailable: the broker does not answer or cannot write.
        """
        ...

    def hush(self, waiting: Mapping[str, int]) -> int:
        """Take away the bells that no job waits for any more; return how many there were.

        A job submitted this very moment may lose its bell: ring, with fresh counts, right after.

        Raises:
            RedisUnavailable: as for `ring`.
        """
        ...


def make_app(settings: Settings) -> Celery:
    """Return the Celery app that producers ring through and workers listen with."""
    app = Celery("pixelkiln", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=False,  # bells are disposable; the ledger's leases make the work safe
        task_default_queue="pixelkiln.unused",
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=settings.redis_timeout_s,
        broker_transport_options={
            "global_keyprefix": CELERY_PREFIX,
            "priority_steps": [0],  # the ledger orders jobs; one list a lane keeps the depth readable
            "socket_timeout": max(settings.redis_timeout_s, 5.0),  # above kombu's BRPOP of one second
            "socket_connect_timeout": settings.redis_timeout_s,
            "socket_keepalive": True,
            # also how long kombu waits for an overdue BRPOP before it takes the connection for dead
            "health_check_interval": max(1, round(2 * settings.redis_timeout_s)),
            "visibility_timeout": 3_600,
        },
    )
    return app


def queue_key(lane: str) -> str:
    """Return the Redis list that holds a lane's bells."""
    return f"{CELERY_PREFIX}{lane}"


def task_name(lane: str) -> str:
    """Return the Celery task a lane's bells call: `pixelkiln.{kind}`."""
    return f"pixelkiln.{lane.partition('.')[0]}"


def lane_queue(lane: str) -> Queue:
    """Return the queue of a lane, as workers declare it."""
    return Queue(lane, Exchange(""), routing_key=lane)


class CeleryBells:
    """Bells in a lane's Celery queue, pushed in pipelined Redis calls.

    Celery's own `delay` sends about a thousand messages a second; a bulk submit may need a thousand at once.
    The message is Celery's (protocol 2), built by Celery once a lane; only its ids differ from bell to bell.
    """

    def __init__(self, app: Celery, client: redis.Redis) -> None:
        self._app = app
        self._client = client
        self._template = lru_cache(maxsize=1_024)(self._build)
        self._one_more = client.register_script(_ONE_MORE)

    def ring(self, waiting: Mapping[str, int]) -> int:
        """See `Bells.ring`. Two callers at once may add a few bells too many, which is harmless."""
        wanted = {lane: min(count, CAP) for lane, count in waiting.items() if count > 0}
        if not wanted:
            return 0
        try:
            if len(wanted) > 1:
                return self._top_up(wanted)
            [(lane, count)] = wanted.items()  # a job submitted alone: one bell is missing, or none
            missing = int(self._one_more(keys=[queue_key(lane)], args=[count, BELL_TTL_S, self._bell(lane)]))
            return (1 if missing >= 0 else 0) + (self._top_up(wanted) if missing > 0 else 0)
        except redis.RedisError as error:
            raise RedisUnavailable("the broker does not answer") from error

    def hush(self, waiting: Mapping[str, int]) -> int:
        """See `Bells.hush`."""
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for lane, count in waiting.items():
                    pipe.llen(queue_key(lane))
                    # what is pushed last stays: BRPOP takes from the other end
                    pipe.ltrim(queue_key(lane), 0, count - 1) if count else pipe.delete(queue_key(lane))
                lengths = pipe.execute()[::2]
        except redis.RedisError as error:
            raise RedisUnavailable("the broker does not answer") from error
        return sum(max(0, length - count) for length, count in zip(lengths, waiting.values(), strict=True))

    def _top_up(self, wanted: Mapping[str, int]) -> int:
        with self._client.pipeline(transaction=False) as pipe:
            for lane in wanted:
                pipe.llen(queue_key(lane))
            lengths = pipe.execute()
            missing = {lane: wanted[lane] - length for lane, length in zip(wanted, lengths, strict=True)}
            missing = {lane: count for lane, count in missing.items() if count > 0}
            for lane, count in missing.items():
                pipe.lpush(queue_key(lane), *(self._bell(lane) for _ in range(count)))
                pipe.expire(queue_key(lane), BELL_TTL_S)
            if missing:
                pipe.execute()
        return sum(missing.values())

    def _bell(self, lane: str) -> str:
        template = self._template(lane)
        return template.replace(_TASK_ID, str(uuid4())).replace(_DELIVERY_TAG, str(uuid4()))

    def _build(self, lane: str) -> str:
        task = self._app.amqp.as_task_v2(
            _TASK_ID, task_name(lane), args=(lane,), kwargs={}, ignore_result=True
        )
        body = base64.b64encode(json.dumps(task.body).encode()).decode()
        properties = {
            **task.properties,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": lane},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": _DELIVERY_TAG,
        }
        envelope = {"body": body, "content-encoding": "utf-8", "content-type": "application/json"}
        return json.dumps({**envelope, "headers": task.headers, "properties": properties})
