"""Which models are loaded before anybody asks: one before the worker is ready, the rest when it has no work.

The libraries come first, all of them: they take most of the time, and nothing runs well beside an import.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import structlog

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker import families
from pixelkiln_worker.device import Poisoned
from pixelkiln_worker.workshop import Workshop

log = structlog.get_logger(__name__)

LOOK_S = 0.1  # how often a worker that is at work is asked whether it has done


def begin(shop: Workshop, *, all_of_them: bool) -> list[ModelEntry]:
    """Import the libraries of what will be loaded, and load the first; return the others.

    Args:
        all_of_them: every model served, else the catalogue's defaults.

    Raises:
        Poisoned: the device broke.
    """
    entries = list(
        {entry.id: entry for entry in shop.lanes.values() if all_of_them or entry.default_for}.values()
    )
    for entry in entries:
        with suppress(Exception):  # what is wrong with it, loading says
            shop.thread.run(partial(families.family, entry))
    # What imports made stays to the end. Left in, half a million objects were looked through in 0.3 s, every
    # thread standing still, whenever a model made room or Python found it time.
    gc.freeze()
    if entries:
        _load(shop, entries[0])
    return entries[1:]


def go_on(shop: Workshop, entries: Sequence[ModelEntry]) -> None:
    """Load the rest from a thread of its own, one between jobs, while there is room; returns at once.

    A job that comes meanwhile waits for one load at most: the device does one thing after the other.
    """
    threading.Thread(target=_go_on, args=(shop, entries), name="warming", daemon=True).start()


def _go_on(shop: Workshop, entries: Sequence[ModelEntry]) -> None:
    for entry in entries:
        while shop.held.jobs() and not shop.draining.is_set():
            time.sleep(LOOK_S)
        if shop.draining.is_set() or not _room(shop):
            return
        try:
            _load(shop, entry)
        except Poisoned:
            shop.thread.run(lambda: shop.end_poisoned(()))


def _room(shop: Workshop) -> bool:
    """Whether another model as large as the largest so far fits: loading must not drive one out."""
    taken = [model.footprint_bytes for model in shop.residency.residents]
    return sum(taken) + max(taken, default=0) <= shop.device.memory_bytes


def _load(shop: Workshop, entry: ModelEntry) -> None:
    try:
        shop.thread.run(partial(_load_there, shop, entry))
    except ModelUnavailable as error:
        log.error("a model is not available", model=entry.id, error=error.message)


def _load_there(shop: Workshop, entry: ModelEntry) -> None:
    with shop.telemetry.shares.loading():
        shop.residency.use(entry)
