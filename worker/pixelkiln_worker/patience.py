"""Outages are waited out: an action is tried again, ever more slowly, while its result is still wanted."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from pixelkiln_shared.errors import Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
PATIENCE_S = 3_600.0  # an outage of the store longer than this fails the job; its work is then done in vain


class Unwanted(Exception):
    """The result is not wanted any more, so trying on would be in vain."""


def insist(
    action: Callable[[], T],
    wanted: Callable[[], bool],
    *,
    patience_s: float = PATIENCE_S,
    until: float | None = None,
    on_outage: Callable[[Unavailable], object] = lambda error: None,
) -> T:
    """Do `action`, again and again while it raises `Unavailable`.

    Args:
        action: what to do.
        wanted: whether its result still is.
        patience_s: how long to try.
        until: the same as a point in time, monotonic seconds, where several actions share one patience.
        on_outage: hears of every try in vain.

    Raises:
        Unwanted: `wanted` said no between two tries.
        Unavailable: patience ran out.
    """
    until = time.monotonic() + patience_s if until is None else until
    pause_s = FIRST_PAUSE_S
    while True:
        if not wanted():
            raise Unwanted
        try:
            return action()
        except Unavailable as error:
            on_outage(error)
            if time.monotonic() > until:
                raise
            log.warning("waiting out an outage", code=error.code, error=error.message)
        _sleep(pause_s * random.uniform(0.5, 1.0), wanted)  # noqa: S311 - jitter
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _sleep(pause_s: float, wanted: Callable[[], bool]) -> None:
    until = time.monotonic() + pause_s
    while wanted() and (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, 0.25))
