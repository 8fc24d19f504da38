"""Waiting with something to look at: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from pixelkiln.cli.faults import FAILED, INTERRUPTED
from pixelkiln.cli.screen import clean, hint, interactive

if TYPE_CHECKING:
    from pixelkiln.client import Client, Group, Job

LINE_EVERY_S = 10.0
POLL_S = 0.2
WINDOW = 10  # jobs asked about at a time: fifty questions a second at most


class Progress:
    """A progress display on stderr; silent when `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._next_line = time.monotonic() + LINE_EVERY_S

    def __enter__(self) -> Progress:
        if not self._quiet and interactive():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: float, total: float, text: str) -> None:
        """Say how far the work is."""
        if self._quiet:
            return
        if self._bar is not None:
            from rich.markup import escape

            if self._task is None:
                self._task = self._bar.add_task("", total=total)
            self._bar.update(self._task, completed=done, total=total, description=escape(clean(text)))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            hint(f"{done:.0f}/{total:.0f} {clean(text)}")


@contextmanager
def detachable(ids: Sequence[str]) -> Iterator[None]:
    """Turn Ctrl-C into letting go: the jobs go on, and the user is told how to come back."""
    try:
        yield
    except KeyboardInterrupt:
        shown = " ".join(ids[:3]) + (" ..." if len(ids) > 3 else "")
        hint(f"\nNo longer waiting; the work goes on. `pixelkiln wait {shown}` waits again.")
        raise click.exceptions.Exit(INTERRUPTED) from None


def wait_for_jobs(
    client: Client, ids: Sequence[str], timeout_s: float | None, *, quiet: bool = False
) -> Iterator[Job]:
    """Yield the jobs as they end, each once, with a progress display.

    Raises:
        WaitTimeout: some have not ended after `timeout_s` seconds.
    """
    from pixelkiln.client import WaitTimeout

    began = time.monotonic()
    open_ids = list(dict.fromkeys(ids))
    total = len(open_ids)
    with detachable(ids), Progress(quiet=quiet) as progress:
        while open_ids:
            running = ""
            for job_id in open_ids[:WINDOW]:  # the rest is looked at when these have ended
                job = client.job(job_id)
                if job.status.terminal:
                    open_ids.remove(job_id)
                    yield job
                elif not running:
                    running = state_of(job)
            progress.show(total - len(open_ids), total, running)
            if open_ids and timeout_s is not None and time.monotonic() - began > timeout_s:
                raise WaitTimeout(f"{len(open_ids)} of {total} jobs did not end within {timeout_s:g} s")
            if open_ids:
                time.sleep(POLL_S)


def wait_for_group(client: Client, group_id: str, timeout_s: float | None, *, quiet: bool = False) -> Group:
    """Wait until every job of a group has ended, with a progress display.

    Raises:
        WaitTimeout: some have not ended after `timeout_s` seconds.
    """
    from pixelkiln.client import WaitTimeout

    began = time.monotonic()
    group = client.group(group_id)
    with detachable([group_id]), Progress(quiet=quiet) as progress:
        while True:
            ended = sum(count for status, count in group.counts.items() if status.terminal)
            progress.show(ended, group.total, tally(group))
            if group.done:
                return group
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                left = group.total - ended
                raise WaitTimeout(f"{left} of {group.total} jobs did not end within {timeout_s:g} s")
            time.sleep(POLL_S if group.total < 100 else 1.0)
            group.refresh()


def state_of(job: Job) -> str:
    """Say in a few words how a job stands."""
    facts = job.resource
    words = [f"{job.id} {job.status}"]
    if facts.progress.steps:
        words.append(f"step {facts.progress.step} of {facts.progress.steps}")
    elif facts.queue_position:
        words.append(f"{facts.queue_position} before it")
    if facts.eta is not None:
        words.append(f"ready in {left(facts.eta)}")
    return ", ".join(words)


def left(moment: datetime) -> str:
    """Say how long it is until then, about: `40s`, `5m`, `3h`."""
    seconds = max(0.0, (moment - datetime.now(UTC)).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def tally(group: Group) -> str:
    """Say how many jobs are in which state."""
    return ", ".join(f"{count} {status}" for status, count in group.counts.items() if count)


def report_failure(job: Job) -> bool:
    """Say on stderr why an ended job has no result; returns whether it has none."""
    if job.status == "succeeded":
        return False
    why = f": {clean(job.error.message)} [{clean(job.error.code)}]" if job.error else ""
    click.echo(f"{job.id} {job.status}{why}", err=True)
    return True


def finish(failed: bool) -> None:
    """End the command with exit code 1 when a job failed."""
    if failed:
        raise click.exceptions.Exit(FAILED)


def is_group(identity: str) -> bool:
    """Tell a group's id from a job's."""
    return identity.startswith("grp_")
