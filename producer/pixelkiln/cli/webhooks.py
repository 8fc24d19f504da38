"""`webhooks`: what was told to whom, and once more."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from pixelkiln.cli.options import connect, output_options
from pixelkiln.cli.screen import age, clean, emit_json, table

if TYPE_CHECKING:
    from pixelkiln.resources import DeliveryResource


@click.group()
def webhooks() -> None:
    """List the messages about jobs and groups that ended, and send them again."""


@webhooks.command(
    epilog="Example:  pixelkiln webhooks ls -q --status failed | xargs pixelkiln webhooks redeliver"
)
@click.option("--status", type=click.Choice(["pending", "delivered", "failed"]), help="Only such messages.")
@click.option("--job", help="Only messages about this job.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@output_options
@click.pass_context
def ls(
    ctx: click.Context, status: str | None, job: str | None, limit: int, as_json: bool, quiet: bool
) -> None:
    """List messages, newest first."""
    found = list(islice(connect(ctx).webhooks(job=job, status=status), limit))
    if as_json:
        emit_json(found)
    elif quiet:
        for one in found:
            click.echo(one.id)
    else:
        table(["ID", "STATUS", "EVENT", "TRIES", "ANSWER", "AGE", "URL"], map(_row, found))


@webhooks.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@output_options
@click.pass_context
def redeliver(ctx: click.Context, ids: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Send messages again, under the same ids."""
    client = connect(ctx)
    sent = []
    for identity in ids:
        one = client.redeliver(identity)
        sent.append(one)
        if not as_json:
            click.echo(one.id if quiet else f"{one.id} {clean(one.status)}")
    if as_json:
        emit_json(sent)


def _row(one: DeliveryResource) -> list[object]:
    answer = one.error if one.response_status is None else f"{one.response_status} {one.error or ''}".strip()
    return [one.id, one.status, one.event, one.attempts, answer or "", age(one.created_at), one.url]


COMMANDS = {"webhooks": webhooks}
