"""The Celery app of a worker process: `celery -A pixelkiln_worker.app worker --pool threads`.

Importing it is light; the process boots when Celery says `worker_init`, hears bells from `worker_ready` on,
and drains when Celery is told to stop.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from celery import signals

from pixelkiln_shared import heap, logs, pictures
from pixelkiln_shared.bells import CeleryBells, lane_queue, make_app
from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import Misconfigured, Unavailable
from pixelkiln_shared.fleet import Fleet
from pixelkiln_shared.ledger import check_redis, open_ledger, redis_client
from pixelkiln_shared.settings import Settings, settings
from pixelkiln_shared.storage import open_storage
from pixelkiln_shared.strays import Strays
from pixelkiln_worker import device, ears, firing, hung_loads, signs_of_life, tasks, warming
from pixelkiln_worker.compute import Compute
from pixelkiln_worker.held import Held
from pixelkiln_worker.lifecycle import Lifecycle
from pixelkiln_worker.presence import Presence, base_folder
from pixelkiln_worker.recall import Recall
from pixelkiln_worker.refusals import Refusals
from pixelkiln_worker.residency import Residency
from pixelkiln_worker.ringer import Ringer
from pixelkiln_worker.serving import BIRTH, EXIT_MISCONFIGURED, EXIT_UNAVAILABLE, served, worker_id
from pixelkiln_worker.spool import Spool, own_folder
from pixelkiln_worker.telemetry import Telemetry
from pixelkiln_worker.turns import Turns
from pixelkiln_worker.workshop import Workshop

log = structlog.get_logger(__name__)

HANDS = 8  # transfers side by side: enough to hide a store's latency behind a batch of eight
CONNECTIONS = 8  # to Redis, for calls of a millisecond; Celery has a few of its own
SWITCH_S = 0.001  # Python's 5 ms between threads is long against a step of a small model


class Process:
    """One worker process: built at boot, never before, so that `celery inspect` stays light."""

    def __init__(self) -> None:
        self._shop: Workshop | None = None
        self._life: Lifecycle | None = None
        self._cold: list[ModelEntry] = []

    def fire(self) -> str:
        """Run one batch."""
        return "not ready" if self._shop is None else firing.fire(self._shop)

    def boot(self, settings: Settings, lanes: dict[str, ModelEntry]) -> None:
        """Build the workshop, start its loops, load a model that is likely to be asked for.

        Raises:
            Misconfigured: a setting, or Redis's, is wrong.
            Unavailable: Redis or the store does not answer.
        """
        client = redis_client(settings, connections=CONNECTIONS)
        for warning in check_redis(client):
            log.warning("Redis", warning=warning)
        ledger, storage = open_ledger(settings, client=client), open_storage(settings)
        ringer = Ringer(ledger, CeleryBells(app, client), lanes)
        chosen = device.pick(settings)
        turns = Turns(long_fetches=max(1, settings.worker_concurrency - 2))
        telemetry = Telemetry()
        name = worker_id(os.getpid(), os.environ.get(BIRTH) or secrets.token_hex(3))
        base = base_folder(settings.spool_dir)
        Presence(base, settings.redis_url).hold(name)
        spool = Spool(
            storage,
            own_folder(base, name=name),
            bound_bytes=settings.spool_mb * 1_000_000,
            patience_s=settings.outage_s,
        )
        residency = Residency(chosen, on_load=telemetry.loaded)
        rest_s = max(settings.load_timeout_s, hung_loads.SHORTEST_REST_S)
        for model, left_s in hung_loads.lately(base, rest_s).items():
            residency.rest(model, f"{model} did not load: it hung and was given up", left_s)
        self._shop = shop = Workshop(
            worker_id=name,
            lease_s=settings.lease_s,
            lanes=lanes,
            ledger=ledger,
            storage=storage,
            spool=spool,
            refusals=Refusals(spool, rss_limit_bytes=_megabytes(settings.worker_rss_mb)),
            recall=Recall(storage),
            device=chosen,
            thread=device.DeviceThread(),
            residency=residency,
            compute=Compute(turns.progress, chosen.free_caches),
            turns=turns,
            held=Held(ledger),
            telemetry=telemetry,
            hands=ThreadPoolExecutor(HANDS, thread_name_prefix="hands"),
            fetchers=ThreadPoolExecutor(HANDS, thread_name_prefix="fetchers"),
            encoding=threading.Semaphore(os.cpu_count() or 1),
            decode=pictures.decode,
            ring_soon=ringer.nudge,
            hush_soon=ringer.hush,
            draining=threading.Event(),
            end_poisoned=lambda jobs: self._life.end_poisoned(jobs) if self._life is not None else None,
        )
        fleet = Fleet(client)
        self._life = Lifecycle(shop, ringer=ringer, fleet=fleet, client=client, settings=settings)
        self._life.start()
        self._cold = warming.begin(shop, all_of_them=bool(settings.worker_models))

    def ready(self) -> None:
        """Bells are heard from now on."""
        if self._life is not None and self._shop is not None:
            self._life.ready()
            warming.go_on(self._shop, self._cold)

    def drain(self) -> None:
        """Stop claiming; end what runs, or give it back."""
        if self._life is not None:
            self._life.drain()

    def stop(self) -> None:
        """The last call: say goodbye, and end without taking torch apart, which would take seconds."""
        if self._life is not None:
            self._life.stop()
            sys.stderr.flush()
            os._exit(self._life.exit_code)


def _megabytes(count: int | None) -> int | None:
    return None if count is None else count * 1_000_000


ears.install(Strays(redis_client(settings())))
process = Process()
app = make_app(settings())
app.conf.task_queues = [lane_queue(lane) for lane in served(settings())]
tasks.register(app, process.fire)


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    logs.configure(settings())


@signals.worker_init.connect
def _boot(sender: Any, **_: Any) -> None:
    signs_of_life.give()  # before torch, whose import may take the lock for seconds
    logs.configure(settings())
    heap.share_arenas()
    sys.setswitchinterval(SWITCH_S)
    # Before torch is imported: its threads sleep while they wait for each other. Spinning, the default, a
    # small model took 48 s instead of 1.7 s on two cores that other processes used too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    heard = sender.app.amqp.queues.consume_from
    lanes = {lane: entry for lane, entry in served(settings()).items() if lane in heard}
    try:
        process.boot(settings(), lanes)
    except Misconfigured as error:
        log.error("cannot start", error=error.message)
        raise SystemExit(EXIT_MISCONFIGURED) from error
    except Unavailable as error:
        log.error("cannot start yet", error=error.message)
        raise SystemExit(EXIT_UNAVAILABLE) from error
    except device.Poisoned as error:  # no code of its own: a device broken from the start earns longer pauses
        log.error("cannot start: the device is broken", error=str(error))
        raise SystemExit(1) from error


@signals.worker_ready.connect
def _ready(**_: Any) -> None:
    process.ready()


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    process.drain()


@signals.worker_shutdown.connect
def _stop(**_: Any) -> None:
    process.stop()
