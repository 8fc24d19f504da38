"""`ls`, `show` and `stats`: reading, changing nothing."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from pixelkiln.cli.options import connect, output_options
from pixelkiln.cli.screen import age, clean, emit_json, shorten, table
from pixelkiln.cli.waiting import left

if TYPE_CHECKING:
    from pixelkiln.client import Job

STATES = ["blocked", "queued", "running", "canceling", "succeeded", "failed", "canceled", "expired"]


@click.command(epilog="Example:  pixelkiln ls -q --status failed | xargs pixelkiln retry")
@click.option("--status", type=click.Choice(STATES), help="Only jobs in this state.")
@click.option("--kind", type=click.Choice(["generate", "segment"]), help="Only jobs of this kind.")
@click.option("--group", help="Only jobs of this group.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@output_options
@click.pass_context
def ls(
    ctx: click.Context,
    status: str | None,
    kind: str | None,
    group: str | None,
    limit: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """List jobs, newest first."""
    listing = connect(ctx).jobs(status=status, kind=kind, group=group, page_size=min(limit, 200))
    jobs = islice(listing, limit)
    if as_json:
        emit_json([job.resource for job in jobs])
    elif quiet:
        for job in jobs:
            click.echo(job.id)
    else:
        table(["ID", "STATUS", "KIND", "MODEL", "AGE", "WHAT"], [_row(job) for job in jobs])


def _row(job: Job) -> list[object]:
    facts = job.resource
    return [job.id, job.status, job.kind, job.model, age(facts.created_at), what(job)]


def what(job: Job) -> str:
    """Say in a few words what a job is about."""
    facts = job.resource
    if facts.error is not None:
        return shorten(f"{facts.error.code}: {facts.error.message}", 60)
    if facts.input.get("prompt"):
        return shorten(str(facts.input["prompt"]), 60)
    image = facts.input.get("image")
    if image is None:
        return "from noise"
    source = image.get("job") if isinstance(image, dict) else None
    return f"picture of {source}" if source else "a picture"


@click.command()
@click.argument("identity", metavar="ID")
@output_options
@click.pass_context
def show(ctx: click.Context, identity: str, as_json: bool, quiet: bool) -> None:
    """Show a job: its state, input, seed, times and files."""
    job = connect(ctx).job(identity)
    facts = job.resource
    if as_json:
        emit_json(facts)
        return
    if quiet:
        click.echo(job.id)
        return
    lines: dict[str, object] = {
        "id": job.id,
        "status": f"{job.status} ({facts.progress.value:.0%})" if job.status == "running" else job.status,
        "kind": job.kind,
        "model": job.model,
        "group": facts.group or "",
        "created": f"{facts.created_at:%Y-%m-%d %H:%M:%S} UTC",
        "attempts": facts.attempts,
        "seed": "" if facts.seed is None else facts.seed,
        "error": f"{facts.error.code}: {facts.error.message}" if facts.error else "",
        "labels": ", ".join(f"{key}={value}" for key, value in facts.labels.items()),
        "before it": facts.queue_position or "",
        "ready": f"in {left(facts.eta)}, at {facts.eta:%H:%M:%S} UTC" if facts.eta else "",
    }
    for name, value in lines.items():
        if value != "":
            click.echo(f"{name:10} {clean(str(value))}")
    for section, values in (("input", facts.input), ("metrics", facts.metrics)):
        for name, value in values.items():
            if value not in (None, "", [], {}):
                click.echo(f"{section:10} {clean(f'{name} = {value}')}")
    for warning in facts.warnings:
        click.echo(f"{'warning':10} {clean(warning.get('message') or warning.get('code', ''))}")
    for artifact in facts.artifacts:
        size = f"{artifact.width} x {artifact.height}, " if artifact.width else ""
        about = f"{artifact.label or ''} {size}{artifact.size_bytes / 1024:.0f} kB"
        click.echo(f"{'file':10} {artifact.role} {artifact.index} {clean(about.strip())}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def stats(ctx: click.Context, as_json: bool) -> None:
    """Show the queues: what waits, what runs, how long it takes, how many workers that needs."""
    facts = connect(ctx).stats()
    if as_json:
        emit_json(facts)
        return
    lanes = [
        (
            lane.lane,
            lane.waiting,
            lane.running,
            f"{lane.oldest_s:.0f}s",
            "?" if lane.work_s is None else f"{lane.work_s:.0f}s",
            "yes" if lane.servable else "NO WORKER",
        )
        for lane in facts.lanes
    ]
    table(["LANE", "WAITING", "RUNNING", "OLDEST", "WORK", "SERVED"], lanes)
    counts = ", ".join(f"{count} {status}" for status, count in facts.counts.items() if count)
    click.echo(f"\n{facts.workers} workers, {facts.desired_workers} desired; {counts or 'no jobs yet'}")
    if facts.safe_to_stop:
        click.echo(f"safe to stop: {clean(', '.join(facts.safe_to_stop))}")


COMMANDS = {"ls": ls, "show": show, "stats": stats}
