"""`cancel`, `retry` and `rerun`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click

from pixelkiln.cli.faults import Refused
from pixelkiln.cli.options import connect, output_options
from pixelkiln.cli.screen import clean, emit_json, hint
from pixelkiln.cli.waiting import finish, is_group, tally


@click.command()
@click.argument("ids", nargs=-1, metavar="ID...")
@click.option("--group", help="Cancel what of this group has not ended.")
@output_options
@click.pass_context
def cancel(ctx: click.Context, ids: tuple[str, ...], group: str | None, as_json: bool, quiet: bool) -> None:
    """Cancel jobs or groups; what runs stops at its next step. Harmless for ended jobs."""
    client = connect(ctx)
    given = [*ids, *([group] if group else [])]
    if not given:
        raise Refused("name jobs, or a group with --group")
    touched: list[object] = []
    for identity in given:
        if is_group(identity):
            stopped = client.group(identity).cancel()
            touched.append(stopped.resource)
            _say(f"{stopped.id}: {tally(stopped)}", stopped.id, as_json=as_json, quiet=quiet)
        else:
            job = client.run(client.flows.move(identity, "cancel"))
            touched.append(job)
            _say(f"{job.id} {job.status}", job.id, as_json=as_json, quiet=quiet)
    if as_json:
        emit_json(touched)


@click.command()
@click.argument("ids", nargs=-1, metavar="ID...")
@click.option("--group", help="The group that --failed means.")
@click.option("--failed", is_flag=True, help="Retry every failed job of the group.")
@output_options
@click.pass_context
def retry(
    ctx: click.Context, ids: tuple[str, ...], group: str | None, failed: bool, as_json: bool, quiet: bool
) -> None:
    """Put failed, canceled or expired jobs back into their queue."""
    from pixelkiln.client import ApiError

    if failed != bool(group) or not (ids or failed):
        raise Refused("name jobs, or a group with --failed --group GROUP")
    client = connect(ctx)
    wanted = _failed_of(client.jobs(group=group, status="failed")) if failed else iter(ids)
    touched: list[object] = []
    refused = False
    for identity in wanted:
        try:
            job = client.run(client.flows.move(identity, "retry"))  # one request a job
        except ApiError as error:
            if error.code != "already_terminal":
                raise
            refused = True
            hint(f"{identity}: {clean(error.message)}")
            continue
        if as_json:
            touched.append(job)
        _say(f"{job.id} {job.status}", job.id, as_json=as_json, quiet=quiet)
    if as_json:
        emit_json(touched)
    finish(refused)


def _failed_of(jobs: Iterable[object]) -> Iterator[str]:
    yield from [str(job.id) for job in jobs]  # type: ignore[attr-defined]  # listed first: retrying moves them


@click.command()
@click.argument("identity", metavar="ID")
@click.option("--seed", type=int, help="Another seed; left out: the same, for the same picture.")
@output_options
@click.pass_context
def rerun(ctx: click.Context, identity: str, seed: int | None, as_json: bool, quiet: bool) -> None:
    """Submit the same job anew."""
    job = connect(ctx).job(identity).rerun(seed=seed)
    if as_json:
        emit_json(job.resource)
    else:
        click.echo(job.id)
    if not quiet and not as_json:
        hint(f"`pixelkiln wait {job.id}` waits for it.")


def _say(text: str, identity: str, *, as_json: bool, quiet: bool) -> None:
    if not as_json:
        click.echo(identity if quiet else text)


COMMANDS = {"cancel": cancel, "retry": retry, "rerun": rerun}
