"""The Celery tasks: one a kind, each hears a bell and fires once. Their results are lines for Flower."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from celery import Celery

from pixelkiln_shared.errors import Unavailable
from pixelkiln_shared.kinds import Kind

log = structlog.get_logger(__name__)


def register(app: Celery, fire: Callable[[], str]) -> None:
    """Add `pixelkiln.{kind}` for every kind; `fire` runs one batch, of whatever lane needs it most."""

    def hear(lane: str) -> str:
        """Hear a bell of `lane`; return the lane, jobs, batch size and times of what ran."""
        try:
            return fire()
        except Unavailable as error:  # the jobs are safe: whoever reaps rings again
            log.warning("a bell was heard in vain", lane=lane, error=error.message)
            return f"in vain: {error.message}"

    for kind in Kind:
        app.task(name=f"pixelkiln.{kind}", ignore_result=True)(hear)
