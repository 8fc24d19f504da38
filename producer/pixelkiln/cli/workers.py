"""`workers` lists them, `worker` runs them here, and `worker drain` asks some to end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pixelkiln.cli.faults import TIMED_OUT, Refused
from pixelkiln.cli.options import Duration, connect, output_options
from pixelkiln.cli.screen import age, emit_json, hint, table

if TYPE_CHECKING:
    from pixelkiln.client import Client
    from pixelkiln.resources import LoadedResource, WorkerResource

POLL_S = 0.5


@click.command()
@output_options
@click.pass_context
def workers(ctx: click.Context, as_json: bool, quiet: bool) -> None:
    """List the live workers: what they hold, how busy their devices are, how full their batches.

    NEEDED says no for those that can be stopped, all of them together, without loss. BUSY is the part of its
    time that the device ran models. LOADS are the times a model was loaded and, after
    the stroke, those that made another one leave.
    """
    client = connect(ctx)
    listed = client.workers()
    if as_json:
        emit_json(listed)
    elif quiet:
        for worker in listed:
            click.echo(worker.id)
    else:
        spare = client.stats().safe_to_stop
        header = ["WORKER", "STATE", "NEEDED", "HOST", "DEVICE", "RUNNING", "DONE", "BUSY", "LOADS", "FILL"]
        table([*header, "LOADED", "UP"], [_row(worker, worker.id in spare) for worker in listed])
        for worker in listed:
            if worker.reason:
                hint(f"{worker.id} {worker.state}: {worker.reason}")
            for reason in worker.unavailable.values():
                hint(f"{worker.id} cannot serve {reason}")


def _row(worker: WorkerResource, spare: bool) -> list[object]:
    tallies = worker.tallies.values()
    loads, switches = sum(tally.loads for tally in tallies), sum(tally.switches for tally in tallies)
    loaded = ", ".join(_loaded(model) for model in worker.loaded) or ", ".join(worker.resident)
    needed = "no" if spare else "yes"
    what = [
        worker.id,
        worker.state,
        needed,
        worker.host,
        worker.device,
        len(worker.running),
        worker.jobs_done,
    ]
    busy = f"{worker.busy_share:.0%}"
    return [
        *what,
        busy,
        f"{loads}/{switches}" if loads else "-",
        _fill(worker),
        loaded,
        age(worker.started_at),
    ]


def _fill(worker: WorkerResource) -> str:
    """Say how full its batches were on average, all models together."""
    known = [tally for tally in worker.tallies.values() if tally.batch_fill is not None and tally.batches]
    batches = sum(tally.batches for tally in known)
    if not batches:
        return "-"
    return f"{sum((tally.batch_fill or 0.0) * tally.batches for tally in known) / batches:.0%}"


def _loaded(model: LoadedResource) -> str:
    return f"{model.id} ({model.footprint_bytes / 1e6:.0f} MB, {model.load_s:.1f} s)"


class _Runner(click.Group):
    """Runs workers unless a sub-command is named; options it does not know are the launcher's."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the sub-command; what begins with an option is passed on as a whole."""
        if args[0].startswith("-"):
            return "run", _run, args
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Runner,
    invoke_without_command=True,
    context_settings={"ignore_unknown_options": True},
    epilog="Example:  pixelkiln worker drain --host gpu-3 --wait",
)
@click.pass_context
def worker(ctx: click.Context) -> None:
    """Run workers, one for each device of this machine; settings come from PIXELKILN_* variables.

    It ends when it is stopped, or when all its workers have been drained.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(_run)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def _run(arguments: tuple[str, ...] = ()) -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("celery") is None:
        raise Refused("workers need their libraries: pip install 'pixelkiln[worker]'")
    command = [sys.executable, "-m", "pixelkiln_worker", *arguments]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606  the same interpreter, no shell


@worker.command()
@click.argument("ids", nargs=-1, metavar="ID...")
@click.option("--host", help="All workers of this host.")
@click.option("--wait", is_flag=True, help="Return when they are gone.")
@click.option("--timeout", type=Duration(), default="10m", show_default=True, help="The limit of --wait.")
@output_options
@click.pass_context
def drain(
    ctx: click.Context,
    ids: tuple[str, ...],
    host: str | None,
    wait: bool,
    timeout: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Let workers end what they run, claim no more, and stay down.

    The beginning of an id will do where it fits one worker only. `pixelkiln workers` lists them.
    """
    from pixelkiln.client import NotFoundError

    if not ids and host is None:
        raise Refused("name workers, or a host with --host")
    client = connect(ctx)
    asked = []
    for name in _chosen(client.workers(), ids, host):
        try:
            asked.append(client.drain_worker(name))
        except NotFoundError:
            hint(f"{name} has ended meanwhile")
    for one in asked:
        if quiet:
            click.echo(one.id)
        elif not as_json:
            click.echo(f"{one.id} drains; {len(one.running)} in hand")
    if as_json:
        emit_json(asked)
    if wait and not _gone(client, {one.id for one in asked}, timeout):
        raise click.exceptions.Exit(TIMED_OUT)


def _chosen(listed: Sequence[WorkerResource], ids: Sequence[str], host: str | None) -> list[str]:
    """Return the full ids that are meant, each once."""
    chosen = [one.id for one in listed if one.host == host]
    if host is not None and not chosen:
        raise Refused(f"no live worker is on a host named {host}; `pixelkiln workers` lists them")
    for name in ids:
        fitting = [one.id for one in listed if one.id == name] or [
            one.id for one in listed if name and one.id.startswith(name)
        ]
        if not fitting:
            raise Refused(f"no live worker is named {name}; `pixelkiln workers` lists them")
        if len(fitting) > 1:
            raise Refused(f"{name} may be {', '.join(fitting)}")
        chosen += fitting
    return list(dict.fromkeys(chosen))


def _gone(client: Client, names: set[str], timeout_s: float) -> bool:
    """Wait until none of these workers is listed; False when some still are after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while left := names & {one.id for one in client.workers()}:
        if time.monotonic() > deadline:
            hint(f"still there: {', '.join(sorted(left))}")
            return False
        time.sleep(POLL_S)
    return True


COMMANDS = {"workers": workers, "worker": worker}
