"""`keys`: who else may use the API, where Redis is this machine's business."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from pixelkiln.cli.faults import Refused
from pixelkiln.cli.options import Duration, output_options
from pixelkiln.cli.screen import age, clean, emit_json, table

if TYPE_CHECKING:
    from pixelkiln.api_keys import ApiKey, KeyRing

SCOPES = ["read", "submit", "admin"]


@click.group()
def keys() -> None:
    """Make, list and revoke API keys, beside that of PIXELKILN_API_KEY.

    They are kept in the Redis of PIXELKILN_REDIS_URL; servers know of a change within two seconds.
    """


@keys.command(epilog="Example:  PIXELKILN_API_KEY=$(pixelkiln keys create alice --tenant catalogue)")
@click.argument("name")
@click.option("--tenant", default="default", show_default=True, help="Whose jobs it sees and sends.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    default=["read", "submit"],
    show_default=True,
    help="What it may do; may be given several times.",
)
@click.option("--expires", type=Duration(), help="After such a time it opens nothing: 12h, 30d.")
@click.option("--per-minute", type=click.IntRange(min=1), help="Requests it may send to each API process.")
def create(
    name: str, tenant: str, scopes: tuple[str, ...], expires: float | None, per_minute: int | None
) -> None:
    """Make a key for NAME and print it. It cannot be printed again."""
    from pixelkiln.api_keys import KeyScope
    from pixelkiln_shared.errors import InvalidInput

    try:
        with _ring() as ring:
            made, token = ring.make(
                name,
                tenant=tenant,
                scopes=[KeyScope(scope) for scope in scopes],
                lifetime=None if expires is None else timedelta(seconds=expires),
                per_minute=per_minute,
            )
    except InvalidInput as error:
        raise Refused(error.message) from error
    click.echo(f"key {made.id} of {clean(name)}, tenant {tenant}; keep it, it is not shown again", err=True)
    click.echo(token)


@keys.command()
@output_options
def ls(as_json: bool, quiet: bool) -> None:
    """List keys, oldest first."""
    with _ring() as ring:
        found = ring.all()
    if as_json:
        emit_json([key.model_dump(mode="json", exclude={"sha256"}) for key in found])
    elif quiet:
        for key in found:
            click.echo(key.id)
    else:
        table(["ID", "NAME", "TENANT", "SCOPES", "STATE", "PER MINUTE", "AGE"], map(_row, found))


@keys.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def revoke(ids: tuple[str, ...]) -> None:
    """End keys for good."""
    with _ring() as ring:
        for identity in ids:
            key = ring.revoke(identity)
            click.echo(f"{key.id} {clean(key.name)}: revoked")


@contextmanager
def _ring() -> Iterator[KeyRing]:
    from pixelkiln.api_keys import KeyRing
    from pixelkiln_shared.ledger import redis_client
    from pixelkiln_shared.settings import load

    with redis_client(load()) as client:
        yield KeyRing(client)


def _row(key: ApiKey) -> list[object]:
    state = "valid" if key.valid else "revoked" if key.revoked_at else "expired"
    scopes = ",".join(scope for scope in SCOPES if scope in key.scopes)
    return [key.id, key.name, key.tenant, scopes, state, key.per_minute or "", age(key.created_at)]


COMMANDS = {"keys": keys}
