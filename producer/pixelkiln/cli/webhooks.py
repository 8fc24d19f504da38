"""`webhooks`: what was told to whom, and once more."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from pixelkiln.cli.faults import Refused
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
@click.option("--job", help="Only messages about this job, or about the end of this group.")
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


@webhooks.command(epilog="Example:  pixelkiln webhooks secret https://shop.example/hooks/pixelkiln")
@click.argument("url")
def secret(url: str) -> None:
    """Print what the receiver at URL verifies messages with; several while secrets change.

    It is made from this machine's PIXELKILN_WEBHOOK_SECRETS: no server is asked, and none gives it away.
    """
    from pixelkiln.fetch import AddressRefused
    from pixelkiln.webhooks.signing import read_secrets
    from pixelkiln_shared.settings import load

    secrets = read_secrets(load().webhook_secrets.get_secret_value())
    if not secrets:
        raise Refused("PIXELKILN_WEBHOOK_SECRETS is not set here; ask where the API runs")
    try:
        click.echo("\n".join(secrets.of(url)))
    except AddressRefused as error:
        raise Refused(f"{url}: {error}") from error


def _row(one: DeliveryResource) -> list[object]:
    answer = one.error if one.response_status is None else f"{one.response_status} {one.error or ''}".strip()
    return [one.id, one.status, one.event, one.attempts, answer or "", age(one.created_at), one.url]


COMMANDS = {"webhooks": webhooks}
