"""The application: parts made, routers mounted, guards put around them, sweeps begun."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version

import structlog
from anyio import to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from pixelkiln.api import files, groups, jobs, models, openapi, status, uploads, webhooks, workers
from pixelkiln.api.auth import AuthGuard, Gate
from pixelkiln.api.body import BodyGuard
from pixelkiln.api.descriptors import Shortage
from pixelkiln.api.envelope import Envelope
from pixelkiln.api.errors import of_http, of_parameters, problem
from pixelkiln.api.events import Watcher
from pixelkiln.api.facades import batches, huggingface, openai
from pixelkiln.api.impatience import ImpatientStorage
from pixelkiln.api.probe import Probe
from pixelkiln.api.services import FleetCache, Outlooks, Services
from pixelkiln.api_keys import KeyRing
from pixelkiln.gallery import fleet as fleet_pages
from pixelkiln.gallery import pages
from pixelkiln.gallery.thumbnails import Thumbnails
from pixelkiln.leftovers import AllOrphans, sweep_uploads
from pixelkiln.producer import Producer
from pixelkiln.webhooks.signing import read_secrets
from pixelkiln_shared import heap
from pixelkiln_shared.bells import CeleryBells, make_app
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.costs import Costs
from pixelkiln_shared.errors import PixelkilnError
from pixelkiln_shared.fleet import Fleet
from pixelkiln_shared.ledger import check_writes, open_ledger, redis_client
from pixelkiln_shared.ledger.leases import count_leases
from pixelkiln_shared.ledger.outbox import RedisOutbox
from pixelkiln_shared.previews import Previews
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage import FolderStorage, Storage, open_storage

KEYS_S = 2.0  # how long a key that was revoked still opens
SWEEP_S = 5.0
UPLOAD_SWEEP_S = 3_600.0
TRIM_S = 10.0
ORPHAN_SWEEP_S = 15.0
THREADS = 80  # requests in hand at once; most of them wait for Redis or the store

_PARTS = (
    *(jobs, groups, webhooks, uploads, files, models, workers, status),
    *(openai, batches, huggingface),
    *(pages, fleet_pages),
)

_log = structlog.get_logger("pixelkiln.api")


def create_app(settings: Settings) -> FastAPI:
    """Return the API over the Redis and the storage that the settings name. Nothing is connected to yet.

    Raises:
        Misconfigured: the storage URL, the catalogue or a webhook secret is wrong.
    """
    read_secrets(settings.webhook_secrets.get_secret_value())
    services = _services(settings)
    app = FastAPI(
        title="Pixelkiln",
        version=version("pixelkiln"),
        description="Pictures generated and segmented by the thousand, on your own machines.",
        lifespan=_lifespan,
        docs_url=None,  # the framework's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    for part in _PARTS:
        app.include_router(part.router)
    app.mount("/static", StaticFiles(directory=pages.STATIC))
    openapi.install(app)
    app.add_exception_handler(PixelkilnError, _ours)
    app.add_exception_handler(HTTPException, _https)
    app.add_exception_handler(RequestValidationError, _parameters)
    # The last one added is the outermost.
    app.add_middleware(BodyGuard, max_bytes=settings.max_body_bytes)
    app.add_middleware(AuthGuard, gate=services.gate)
    app.add_middleware(Envelope)
    return app


def _services(settings: Settings) -> Services:
    secret = settings.secret.get_secret_value().encode() or secrets.token_bytes(32)
    client = redis_client(settings, impatient=True)
    fleet = FleetCache(Fleet(client))
    ledger = open_ledger(settings, client=client)
    storage = _storage(settings, secret)
    producer = Producer(
        settings,
        ledger=ledger,
        storage=storage,
        bells=CeleryBells(make_app(settings), client),
        catalogue=Catalogue.load(settings.catalogue, stub=settings.stub),
        served_lanes=fleet.served_lanes,
    )
    return Services(
        settings=settings,
        producer=producer,
        fleet=fleet,
        outlooks=Outlooks(ledger, Costs(client), fleet),
        gate=Gate(settings, secret, KeyRing(client)),
        watcher=Watcher(settings, ledger),
        thumbnails=Thumbnails(storage),
        outbox=RedisOutbox(client),
        leases=lambda: count_leases(client),
        previews=Previews(client),
        probe=Probe(
            lambda: check_writes(client),
            storage.check,
            lambda: sum(info.state == "ready" for info in fleet.workers()),
        ),
        secret=secret,
    )


def _storage(settings: Settings, secret: bytes) -> Storage:
    """A folder answers at once, and its links are served here (`files.py`)."""
    storage = open_storage(settings, secret=secret, impatient=True)
    return storage if isinstance(storage, FolderStorage) else ImpatientStorage(storage)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    asyncio.get_running_loop().set_exception_handler(Shortage())
    async with services.watcher.running():
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        producer = services.producer
        ring = services.gate.ring
        orphans = AllOrphans(producer.storage, producer.ledger)
        sweeps = [
            asyncio.create_task(_repeat(ring.refresh, KEYS_S)),
            asyncio.create_task(_repeat(producer.sweep, SWEEP_S)),
            asyncio.create_task(_repeat(lambda: _sweep_uploads(producer.storage, ring), UPLOAD_SWEEP_S)),
            asyncio.create_task(_repeat(lambda: orphans.sweep(ring.tenants), ORPHAN_SWEEP_S)),
            asyncio.create_task(_repeat(heap.trim, TRIM_S)),
        ]
        if (courier := webhooks.courier(services)) is not None:
            sweeps.append(asyncio.create_task(courier.run()))
        try:
            yield
        finally:
            for sweep in sweeps:
                sweep.cancel()
            await asyncio.gather(*sweeps, return_exceptions=True)


def _sweep_uploads(storage: Storage, ring: KeyRing) -> None:
    ring.refresh()  # the first sweep comes before the first reading, and the next one much later
    for tenant in ring.tenants:
        sweep_uploads(storage, tenant)


async def _repeat(sweep: Callable[[], object], seconds: float) -> None:
    """Sweep for as long as the process lives; whatever goes wrong, the next time comes."""
    while True:
        try:
            await run_in_threadpool(sweep)
        except PixelkilnError as error:
            _log.warning("sweep failed", reason=str(error))
        except Exception:  # noqa: BLE001 - a sweep that stops for good would strand jobs
            _log.exception("sweep failed")
        await asyncio.sleep(seconds)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, PixelkilnError)  # noqa: S101 - registered for it
    return problem(error, request)


async def _https(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    answer = problem(of_http(error), request)
    answer.headers.update(error.headers or {})
    if error.status_code == 405:
        answer.headers["Allow"] = ", ".join(sorted(_methods(request))) or "GET, HEAD"  # else below /static
    return answer


def _methods(request: Request) -> set[str]:
    """Return every method this path takes; the framework names those of the first route that fits."""
    routes = [route for part in _PARTS for route in part.router.routes if isinstance(route, Route)]
    fitting = [route for route in routes if route.path_regex.match(request.url.path)]
    return {method for route in fitting for method in route.methods or ()}


async def _parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    return problem(of_parameters(error, request), request)
