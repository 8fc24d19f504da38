"""`watch` and `wait`."""

from __future__ import annotations

import sys

import click

from pixelkiln.cli.options import Duration, connect, output_options
from pixelkiln.cli.screen import clean, emit_json, hint
from pixelkiln.cli.waiting import (
    detachable,
    finish,
    is_group,
    report_failure,
    tally,
    wait_for_group,
    wait_for_jobs,
)


@click.command(epilog="Example:  pixelkiln ls -q --status queued | xargs pixelkiln wait --timeout 10m")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--timeout", type=Duration(), help="Give up after this time (90s, 10m); exit code 3.")
@output_options
@click.pass_context
def wait(ctx: click.Context, ids: tuple[str, ...], timeout: float | None, as_json: bool, quiet: bool) -> None:
    """Wait until jobs or groups have ended; exit code 1 when any failed."""
    client = connect(ctx)
    ended: list[object] = []
    failed = False
    for job in wait_for_jobs(client, [i for i in ids if not is_group(i)], timeout, quiet=quiet):
        failed |= report_failure(job)
        ended.append(job.resource)
        if quiet:
            click.echo(job.id)
    for group_id in filter(is_group, ids):
        group = wait_for_group(client, group_id, timeout, quiet=quiet)
        failed |= group.counts.get("succeeded", 0) < group.total  # type: ignore[call-overload]
        ended.append(group.resource)
        if quiet:
            click.echo(group.id)
        else:
            hint(f"{group.id}: {tally(group)}")
    if as_json:
        emit_json(ended)
    finish(failed)


@click.command()
@click.argument("identity", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@click.pass_context
def watch(ctx: click.Context, identity: str, as_json: bool) -> None:
    """Follow a job's events live, or a group's counters."""
    client = connect(ctx)
    if is_group(identity):
        group = wait_for_group(client, identity, None)
        click.echo(f"{group.id}: {tally(group)}")
        finish(group.counts.get("succeeded", 0) < group.total)  # type: ignore[call-overload]
        return
    job = client.job(identity)
    with detachable([identity]):
        for event in job.events():
            if as_json:
                import json

                click.echo(json.dumps({"id": event.id, "type": event.type, "data": event.data}))
            else:
                facts = " ".join(f"{k}={clean(str(v))}" for k, v in event.data.items() if _short(v))
                click.echo(f"{event.type:9} {facts}")
            sys.stdout.flush()
    finish(report_failure(job.refresh()))


def _short(value: object) -> bool:
    return isinstance(value, str | int | float) and len(str(value)) <= 100


COMMANDS = {"wait": wait, "watch": watch}
