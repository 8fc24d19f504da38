"""`import`: the history of finished jobs, out of the bucket and into Redis."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixelkiln.cli.faults import FAILED, NO_SERVER
from pixelkiln.cli.screen import clean, emit_json, hint

if TYPE_CHECKING:
    import redis

    from pixelkiln.history import Tally

ROOM = 0.8  # of `maxmemory`: beyond, history does not go
CHECK_EACH = 20  # calls of 200 jobs: some 8 MB of records
DAY = click.DateTime(["%Y-%m-%d"])
_LOST = {
    "broken": "jobs whose manifest cannot be read",
    "other_version": "jobs of a newer version of Pixelkiln: import them with that",
    "incomplete": "jobs whose files are not all there",
}


@click.command(name="import")
@click.option("--tenant", help="Whose jobs; left out: everybody's.")
@click.option("--since", type=DAY, metavar="DAY", help="The first day, as 2026-11-25 (UTC).")
@click.option("--until", type=DAY, metavar="DAY", help="The last day.")
@click.option(
    "--expired", is_flag=True, help="Also jobs whose time was over; they live a full time from now."
)
@click.option("--dry-run", is_flag=True, help="Read and count, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@click.option(
    "--data", type=click.Path(path_type=Path), default=Path("pixelkiln-data"), show_default=True,
    help="The folder of a running `pixelkiln up`, asked where its Redis and storage are.",
)  # fmt: skip
@click.pass_context
def import_history(
    ctx: click.Context,
    tenant: str | None,
    since: datetime | None,
    until: datetime | None,
    expired: bool,
    dry_run: bool,
    as_json: bool,
    data: Path,
) -> None:
    """Rebuild the history of finished jobs from the storage's manifests, in a Redis that lost it.

    Talks to Redis and the storage itself. Records that are there stay as they are, so it may be run again,
    and while everything works. Exit code 1 when a finished job could not be brought back, 5 when Redis or
    the storage does not answer.
    """
    from pixelkiln.cli.doctor import adopt_stack
    from pixelkiln.history import Scope, restore
    from pixelkiln_shared.errors import RedisUnavailable, StorageUnavailable
    from pixelkiln_shared.ledger import check_redis, open_ledger, redis_client
    from pixelkiln_shared.settings import load
    from pixelkiln_shared.storage import open_storage

    if tenant is not None and not is_tenant(tenant):
        raise click.UsageError(f"--tenant {clean(tenant)!r}: letters, digits, - and _")
    if since and until and since > until:
        raise click.UsageError("--since is after --until")
    adopt_stack(ctx, data)
    settings = load()
    client = redis_client(settings)
    days = {"since": since and since.date(), "until": until and until.date()}
    scope = Scope(tenant=tenant, **days, expired=expired)
    try:
        if not dry_run:
            check_redis(client)
        tally = restore(
            open_storage(settings), open_ledger(settings, client=client), scope,
            retention_s=settings.retention_s, dry_run=dry_run,
            progress=_progress(None if dry_run else client),
        )  # fmt: skip
    except (RedisUnavailable, StorageUnavailable) as error:
        click.echo(f"Error: {clean(error.message)}", err=True)
        hint("What was imported stays; run it again.")
        raise click.exceptions.Exit(NO_SERVER) from error
    finally:
        client.close()
    _tell(tally, dry_run=dry_run, as_json=as_json)
    if tally.lost:
        raise click.exceptions.Exit(FAILED)


def is_tenant(name: str) -> bool:
    """Tell whether a name can be a tenant's: it is the first part of its objects' keys."""
    return name.replace("-", "").replace("_", "").isalnum() and name.isascii() and name[:1] != "-"


def _progress(client: redis.Redis | None) -> Callable[[Tally, str], None]:
    """Return what shows one line on a terminal, elsewhere a line a day, and minds the memory of Redis."""
    shown, calls = "", 0
    in_place = sys.stderr.isatty()

    def show(tally: Tally, day: str) -> None:
        nonlocal shown, calls
        if client is not None and calls % CHECK_EACH == 0:
            _leave_room(client, day)
        calls += 1
        line = f"{day}: {tally.objects} objects seen, {tally.restored} jobs imported, {tally.known} known"
        if in_place:
            click.echo(f"\r{line}\x1b[K", nl=False, err=True)
        elif day != shown:
            click.echo(line, err=True)
        shown = day

    return show


def _leave_room(client: redis.Redis, day: str) -> None:
    """Stop before old records take the memory that new jobs need."""
    from pixelkiln_shared.ledger import redis_errors

    with redis_errors():
        facts = client.info("memory")
    limit, used = int(facts.get("maxmemory", 0)), int(facts["used_memory"])
    if limit and used > ROOM * limit:
        raise click.ClickException(
            f"stopped at {day}: {used / limit:.0%} of Redis's maxmemory is used, and new jobs need the rest; "
            "give it more, or import less (--since)"
        )


def _tell(tally: Tally, *, dry_run: bool, as_json: bool) -> None:
    if sys.stderr.isatty():
        click.echo(err=True)
    if as_json:
        emit_json({**asdict(tally), "dry_run": dry_run, "at": datetime.now(UTC).isoformat()})
        return
    done = "would be imported" if dry_run else "imported"
    click.echo(f"{tally.restored} jobs {done}, {tally.known} were known, {tally.unfinished} never finished")
    if tally.expired:
        click.echo(f"{tally.expired} had expired: `--expired` imports them too")
    if tally.foreign:
        click.echo(f"{tally.foreign} objects are not Pixelkiln's")
    for name, what in _LOST.items():
        if count := getattr(tally, name):
            click.echo(f"{count} {what}")


COMMANDS = {"import": import_history}
