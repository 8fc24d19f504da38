"""`python -m pixelkiln.api`: serve until SIGTERM; exit 2 with one line when the settings forbid it."""

from __future__ import annotations

import ipaddress
import sys
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from pixelkiln.api import descriptors
from pixelkiln.api.app import create_app
from pixelkiln.api.events import Watcher
from pixelkiln.api.protocol import HeadTimeoutProtocol
from pixelkiln_shared import heap, logs
from pixelkiln_shared import settings as settings_module
from pixelkiln_shared.errors import Misconfigured, RedisUnavailable
from pixelkiln_shared.ledger import check_redis, redis_client
from pixelkiln_shared.settings import Settings

_log = structlog.get_logger("pixelkiln.api")


def main() -> int:
    """Serve; return the exit status."""
    heap.share_arenas()
    try:
        settings = settings_module.load()
        logs.configure(settings)
        check_bind(settings)
        _check_redis(settings)
        app = create_app(settings)
    except Misconfigured as error:
        print(f"pixelkiln api: {error}", file=sys.stderr)
        return 2
    _Server(_config(app, settings), app.state.services.watcher).run()
    return 0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, watcher: Watcher) -> None:
        super().__init__(config)
        self._watcher = watcher

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the event streams first: the server waits for open connections before it stops."""
        self._watcher.stop()
        super().handle_exit(sig, frame)


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    mine = descriptors.claim()
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=HeadTimeoutProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        limit_concurrency=descriptors.connections(mine),
        backlog=descriptors.backlog(mine),
    )


def check_bind(settings: Settings) -> None:
    """Refuse to be reachable from other machines without a key.

    Raises:
        Misconfigured: the address is not loopback and no key is set.
    """
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    if not key and not _loopback(settings.host):
        raise Misconfigured(
            f"PIXELKILN_HOST={settings.host} is reachable from other machines: set PIXELKILN_API_KEY first"
        )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _check_redis(settings: Settings) -> None:
    """Refuse a Redis that may drop jobs; one that is merely away is waited for, request by request."""
    try:
        for warning in check_redis(redis_client(settings)):
            _log.warning(warning)
    except RedisUnavailable as error:
        _log.warning("Redis does not answer yet", reason=str(error))


if __name__ == "__main__":
    sys.exit(main())
