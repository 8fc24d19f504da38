"""`doctor`: is everything there, and what would a crash cost?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from pixelkiln.cli.faults import FAILED
from pixelkiln.cli.options import connect
from pixelkiln.cli.screen import clean, emit_json, hint

if TYPE_CHECKING:
    from pixelkiln.client import Client
    from pixelkiln_shared.settings import Settings

State = Literal["ok", "warn", "fail"]
MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok  ", "green"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "red"),
}


class Finding(NamedTuple):
    """What one check found."""

    check: str
    state: State
    detail: str


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), default=Path("pixelkiln-data"), show_default=True,
    help="The folder of a running `pixelkiln up`, asked where its Redis and storage are.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, data: Path, as_json: bool) -> None:
    """Check Redis, storage, API, workers and models; exit code 1 when something does not work."""
    facts = adopt_stack(ctx, data)
    if facts and not as_json:
        hint(f"asking the stack that runs on {data}")
    findings = []
    for finding in examine(connect(ctx), backstage=is_backstage(ctx)):
        findings.append(finding)
        if not as_json:
            mark, colour = MARKS[finding.state]
            click.echo(f"{click.style(mark, fg=colour)}  {finding.check:8} {clean(finding.detail)}")
    if as_json:
        emit_json([finding._asdict() for finding in findings])
    if any(finding.state == "fail" for finding in findings):
        raise click.exceptions.Exit(FAILED)


def adopt_stack(ctx: click.Context, data: Path) -> dict[str, str]:
    """Take the addresses of a stack that runs on `data`, where the environment names none."""
    from pixelkiln.local.facts import facts_of

    facts = facts_of(data)
    for name in ("redis_url", "storage_url"):
        if name in facts:
            os.environ.setdefault(f"PIXELKILN_{name}".upper(), facts[name])
    if ctx.meta.get("pixelkiln.url") is None:
        ctx.meta["pixelkiln.url"] = facts.get("url")
    return facts


def is_backstage(ctx: click.Context) -> bool:
    """Tell whether Redis and storage are this machine's business, not only a server's elsewhere."""
    if find_spec("redis") is None or find_spec("pydantic_settings") is None:
        return False
    named = any(os.environ.get(f"PIXELKILN_{name}") for name in ("REDIS_URL", "STORAGE_URL"))
    return named or ctx.meta.get("pixelkiln.url") is None


def examine(client: Client, *, backstage: bool) -> Iterator[Finding]:
    """Yield the findings, from the ground up."""
    if backstage:
        yield from _backstage()
    else:
        yield Finding("here", "ok", "a client only; Redis and storage are looked after by the server")
    yield from _guarded("api", lambda: _api(client))


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    from pixelkiln_shared.errors import PixelkilnError

    try:
        yield from check()
    except PixelkilnError as error:
        yield Finding(name, "fail", error.message)


def _backstage() -> Iterator[Finding]:
    from pixelkiln_shared.errors import Misconfigured
    from pixelkiln_shared.settings import load

    try:
        settings = load()
    except Misconfigured as error:
        yield Finding("settings", "fail", error.message)
        return
    yield Finding("settings", "ok", "every PIXELKILN_* variable is known and well-formed")
    yield from _guarded("redis", lambda: _redis(settings))
    yield from _guarded("storage", lambda: _storage(settings))


def _redis(settings: Settings) -> Iterator[Finding]:
    from pixelkiln.local.redis_server import without_password
    from pixelkiln_shared.ledger import check_redis, redis_client, redis_errors

    where = without_password(settings.redis_url)
    client = redis_client(settings)
    try:
        warnings = check_redis(client)
        with redis_errors():
            facts: dict[str, Any] = client.info()
            began = time.monotonic()
            client.ping()
            trip_ms = (time.monotonic() - began) * 1_000
    finally:
        client.close()
    yield Finding(
        "redis",
        "ok",
        f"{facts['redis_version']} at {where}, answers in {trip_ms:.1f} ms, "
        f"{facts['used_memory_human']} used, policy {facts['maxmemory_policy']}",
    )
    for warning in warnings:
        usual = (
            "appendfsync is everysec" in warning
        )  # a second's loss in a power cut is what the default promises
        yield Finding("redis", "ok" if usual else "warn", warning)
    if not warnings:
        yield Finding(
            "redis", "ok", "every write is on disk before it is answered: a power cut loses nothing"
        )


def _storage(settings: Settings) -> Iterator[Finding]:
    from pixelkiln_shared.storage import FolderStorage, open_storage

    storage = open_storage(settings)
    named = "PIXELKILN_STORAGE_URL" in os.environ
    if isinstance(storage, FolderStorage) and not named and not storage.root.exists():
        yield Finding("storage", "warn", f"{settings.storage_url}: no such folder yet")
        return
    began = time.monotonic()
    storage.check()
    trip_ms = (time.monotonic() - began) * 1_000
    yield Finding("storage", "ok", f"{settings.storage_url}: written, read and removed in {trip_ms:.0f} ms")


def _api(client: Client) -> Iterator[Finding]:
    began = time.monotonic()
    stats = client.stats()
    trip_ms = (time.monotonic() - began) * 1_000
    counts = ", ".join(f"{count} {status}" for status, count in stats.counts.items() if count)
    yield Finding("api", "ok", f"{client.url} answers in {trip_ms:.0f} ms; {counts or 'no jobs yet'}")
    workers = client.workers()
    ready = [worker for worker in workers if worker.state == "ready"]
    state: State = "ok" if ready else "fail"
    devices = ", ".join(sorted({worker.device for worker in ready}))
    yield Finding(
        "workers", state, f"{len(ready)} of {len(workers)} ready{f' on {devices}' if devices else ''}"
    )
    for worker in workers:
        if worker.reason:
            yield Finding("workers", "warn", f"{worker.id} is {worker.state}: {worker.reason}")
    for worker in ready:
        if len(worker.models) > 1:
            longest = f"a lane waits at most {worker.longest_lane_wait_s:.0f} s for its turn"
            yield Finding("workers", "ok", f"{worker.id}: {longest}, by the loads and runs known so far")
    models = client.models()
    idle = [model.id for model in models if not model.ready_workers]
    served = len(models) - len(idle)
    detail = f"{served} of {len(models)} served" + (f"; nobody serves {', '.join(idle)}" if idle else "")
    yield Finding("models", "warn" if idle else "ok", detail)
    for model in models:
        if model.unavailable:
            yield Finding("models", "fail" if model.default_for else "warn", model.unavailable)
    for lane in stats.lanes:
        if not lane.servable and lane.waiting:
            yield Finding("queue", "warn", f"{lane.waiting} jobs wait in {lane.lane}, which nobody serves")


COMMANDS = {"doctor": doctor}
