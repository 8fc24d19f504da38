"""A client that does not wait again for a Redis which was silent a moment ago."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.exceptions import TimeoutError as RedisTimeoutError

ASK_AGAIN_S = (
    1.0  # while Redis is silent one call in this time tries it; its return costs others at most as much
)


class Silence:
    """Remembers that a call got no answer in its time, and says who may try again. Safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ask_at: float | None = None

    def may_ask(self) -> bool:
        """Whether a call may go out now; during a silence one does each `ASK_AGAIN_S`."""
        with self._lock:
            if self._ask_at is None:
                return True
            if self._clock() < self._ask_at:
                return False
            self._ask_at = self._clock() + ASK_AGAIN_S
            return True

    def begin(self) -> None:
        """Note that a call waited in vain."""
        with self._lock:
            self._ask_at = self._clock() + ASK_AGAIN_S

    def end(self) -> None:
        """Note that Redis said something, be it an error."""
        with self._lock:
            self._ask_at = None


class ImpatientRedis(redis.Redis):
    """For a server with many callers: a frozen Redis costs the first of them `socket_timeout`, not each.

    Without it every request holds a thread for that long, and those that wait for a thread wait in turn.
    Pipelines and subscriptions are not watched.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._silence = Silence()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command.

        Raises:
            TimeoutError: Redis's own class; at once when Redis has been silent until now.
        """
        if not self._silence.may_ask():
            raise RedisTimeoutError("it was silent a moment ago")
        try:
            answer = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except RedisTimeoutError:
            self._silence.begin()
            raise
        except redis.RedisError:
            self._silence.end()
            raise
        self._silence.end()
        return answer
