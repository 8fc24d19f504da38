"""`doctor`: is everything there, and what would a crash cost?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixelkiln.cli.backstage import Finding, State, backstage_findings, guarded
from pixelkiln.cli.faults import FAILED, NO_SERVER
from pixelkiln.cli.options import connect
from pixelkiln.cli.screen import clean, emit_json, hint

if TYPE_CHECKING:
    from pixelkiln.client import Client

MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok  ", "green"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "red"),
}
SILENT = {"redis_unavailable", "storage_unavailable", "server_unreachable"}  # codes of what does not answer


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), default=Path("pixelkiln-data"), show_default=True,
    help="The folder of a running `pixelkiln up`, asked where its Redis and storage are.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, data: Path, as_json: bool) -> None:
    """Check Redis, storage, the ledger, API, workers and models.

    Exit code 0 when all is well (warnings are), 1 when something is wrong, 5 when Redis, the storage or the
    API does not answer.
    """
    facts = adopt_stack(ctx, data)
    if facts and not as_json:
        hint(f"asking the stack that runs on {data}")
    findings: list[Finding] = []
    for finding in examine(connect(ctx), backstage=is_backstage(ctx)):
        findings.append(finding)
        if not as_json:
            mark, colour = MARKS[finding.state]
            click.echo(f"{click.style(mark, fg=colour)}  {finding.check:8} {clean(finding.detail)}")
    if as_json:
        emit_json([{k: v for k, v in finding._asdict().items() if v} for finding in findings])
    code = exit_code(findings)
    if code:
        raise click.exceptions.Exit(code)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 when nothing fails, 5 when something does not answer, else 1."""
    failed = [finding for finding in findings if finding.state == "fail"]
    if any(finding.code in SILENT for finding in failed):
        return NO_SERVER
    return FAILED if failed else 0


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
        yield from backstage_findings()
    else:
        yield Finding("here", "ok", "a client only; Redis and storage are looked after by the server")
    yield from guarded("api", lambda: _api(client))


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
    loaded = {one.id for worker in workers for one in worker.loaded}
    never = [model.id for model in models if model.ready_workers and model.id not in loaded]
    if never:
        yield Finding(
            "models", "ok", f"not loaded anywhere yet: {', '.join(never)}; a first job waits for that"
        )
    for model in models:
        if model.unavailable:
            yield Finding("models", "fail" if model.default_for else "warn", model.unavailable)
    for lane in stats.lanes:
        if not lane.servable and lane.waiting:
            yield Finding("queue", "warn", f"{lane.waiting} jobs wait in {lane.lane}, which nobody serves")


COMMANDS = {"doctor": doctor}
