"""`submit`: files of prompts and pictures, by the thousand."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelkiln.cli.faults import Refused
from pixelkiln.cli.journal import Journal, journal_path
from pixelkiln.cli.options import Pair, connect, job_options, output_options, wait_options
from pixelkiln.cli.rows import Row, read_rows
from pixelkiln.cli.screen import clean, emit_json, hint
from pixelkiln.cli.waiting import Progress, finish, tally, wait_for_group

if TYPE_CHECKING:
    from pixelkiln.client import Client

SHOWN_FAULTS = 20


@click.command(
    epilog="Examples:  pixelkiln submit prompts.csv --map prompt=caption --dry-run\n\n"
    "           pixelkiln submit prompts.jsonl --group evening --wait"
)
@click.argument("file", metavar="FILE")
@click.option("--map", "renames", type=Pair(), multiple=True, help="FIELD=COLUMN: a column by another name.")
@click.option("--group", "name", help="A name for the group (a label), or the id of one to add to.")
@click.option("--model", help="The model of rows that name none.")
@click.option("--dry-run", is_flag=True, help="Check every row, submit nothing.")
@click.option("--resume", is_flag=True, help="Go on with a submit of this file that was cut off.")
@job_options
@wait_options
@output_options
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    file: str,
    renames: tuple[tuple[str, str], ...],
    name: str | None,
    dry_run: bool,
    resume: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
    **defaults: Any,
) -> None:
    """Submit every row of FILE (.csv, .jsonl, or `-`) as a job; prints the id of their group."""
    rows = read_rows(file, {column: field for field, column in renames})
    batch = Batch(file, name, **defaults)
    if dry_run:
        check(rows, batch, as_json=as_json)
        return
    client = connect(ctx)
    journal = open_journal(file, client.url, name or "", resume=resume)
    with Progress(quiet=quiet) as progress:
        sent = batch.send(client, journal, rows, progress)
    if journal.group is None:
        raise Refused(f"{file}: there are no rows")
    if not quiet:
        hint(f"{len(journal.accepted):,} jobs accepted, {sent:,} of them now")
    if wait:
        group = wait_for_group(client, journal.group, timeout, quiet=quiet)
        hint(tally(group))
    else:
        group = client.group(journal.group)
    if as_json:
        emit_json({**group.resource.model_dump(mode="json"), "rows": journal.accepted})
    else:
        click.echo(group.id)
    if not wait and not quiet:
        hint(
            f"`pixelkiln wait {group.id}` waits for them; `pixelkiln download {group.id} -o DIR` saves them."
        )
    finish(wait and group.counts.get("succeeded", 0) < group.total)  # type: ignore[call-overload]


def open_journal(file: str, url: str, name: str, *, resume: bool) -> Journal:
    """Return the journal to write to.

    Raises:
        Refused: `--resume` of stdin.
    """
    if file == "-" and resume:
        raise Refused("stdin cannot be resumed; put the rows into a file")
    journal = Journal.load(journal_path(file, url, name))
    if resume and (journal.accepted or journal.pending):
        return journal
    if not resume and not journal.complete and journal.accepted:
        hint(
            f"an earlier submit of {file} stopped after {len(journal.accepted):,} rows; this one begins anew"
        )
    journal.start()
    return journal


class Batch:
    """A file's way to the server, in chunks."""

    def __init__(
        self,
        file: str,
        name: str | None,
        *,
        model: str | None,
        priority: str | None,
        tags: tuple[tuple[str, str], ...],
        webhook: dict[str, str] | None = None,
    ) -> None:
        self._folder = Path(file).parent if file != "-" else Path()
        self._into = name if name and name.startswith("grp_") else None
        self._model = model
        self._priority = priority
        self._tags = dict(tags) if name is None or self._into else {**dict(tags), "group": name}
        self._webhook = webhook
        self._warned: set[str] = set()
        self._uploads: dict[Path, dict[str, Any]] = {}

    def request(self, row: Row) -> dict[str, Any]:
        """Return a row as an envelope; pictures are still paths.

        Raises:
            Refused: the row has fields that no job has.
        """
        from pixelkiln.client.requests import known_fields, row_request

        fields = dict(row.fields)
        unknown = [] if "input" in fields else sorted(set(fields) - known_fields())
        if unknown:
            raise Refused(
                f"line {row.line}: no job has a field {unknown[0]!r}; --map FIELD={unknown[0]} renames it"
            )
        request = row_request(fields)
        if self._model and request.get("model") is None:
            request["model"] = self._model
        if self._priority and request.get("priority") is None:
            request["priority"] = self._priority
        if self._tags:
            request["labels"] = {**self._tags, **(request.get("labels") or {})}
        return request

    def send(self, client: Client, journal: Journal, rows: Iterable[Row], progress: Progress) -> int:
        """Send every row not yet accepted; returns how many were accepted now."""
        before = len(journal.accepted)
        if journal.pending is not None:
            self._exchange(client, journal)
        if journal.group is None:
            journal.group = self._into
        fresh = (row for row in rows if row.key not in journal.accepted)
        for chunk, last in _chunks(fresh):
            requests = [self._with_pictures(client, row, self.request(row)) for row in chunk]
            from pixelkiln.client.flows import new_key

            told = self._webhook if last else None  # earlier, the group might be complete before its end
            journal.send(new_key(), [row.key for row in chunk], requests, told)
            self._exchange(client, journal, chunk)
            progress.show(len(journal.accepted), len(journal.accepted), "jobs accepted")
        journal.end()
        return len(journal.accepted) - before

    def _exchange(self, client: Client, journal: Journal, chunk: list[Row] | None = None) -> None:
        from pixelkiln.client import QueueFullError, ValidationError

        pending = journal.pending
        assert pending is not None  # noqa: S101
        while True:
            try:
                bulk = client.submit_batch(
                    pending["requests"],
                    group=pending["group"],
                    idempotency_key=pending["key"],
                    webhook=pending.get("webhook"),
                )
            except QueueFullError as error:  # patience is what a file of a hundred thousand rows needs
                hint(f"{clean(error.message)}; waiting")
                time.sleep(error.retry_after_s or 5.0)
                continue
            except ValidationError as error:
                journal.refused()
                if chunk:
                    name_lines(error.errors, chunk)
                raise
            journal.answered(bulk.group, bulk.ids)
            self._warn(bulk.warnings)
            return

    def _warn(self, warnings: Iterable[dict[str, str]]) -> None:
        """Say what the server warned of, each once however many chunks there are, without counts."""
        for warning in warnings:
            about = (warning.get("message") or warning.get("code", "")).partition(";")[0]
            if about not in self._warned:
                self._warned.add(about)
                hint(f"warning: {clean(about)}")

    def _with_pictures(self, client: Client, row: Row, request: dict[str, Any]) -> dict[str, Any]:
        fields = dict(request["input"])
        files = {name: self._folder / fields[name] for name in picture_files(fields)}
        if not files:
            return request
        for name, path in files.items():
            fields[name] = self._uploaded(client, row, path)
        tag = {"file": files["image"].name[:200]} if "image" in files else {}
        return {**request, "labels": {**tag, **(request.get("labels") or {})}, "input": fields}

    def _uploaded(self, client: Client, row: Row, path: Path) -> dict[str, Any]:
        if path not in self._uploads:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise Refused(f"line {row.line}: {path}: {error.strerror}") from error
            self._uploads[path] = client.upload(data)
        return self._uploads[path]


def picture_files(fields: dict[str, Any]) -> list[str]:
    """Return the fields of a row that name a picture file."""
    from pixelkiln_shared.kinds import PICTURE_FIELDS

    return [name for name in sorted(PICTURE_FIELDS) if isinstance(fields.get(name), str)]


def name_lines(faults: list[dict[str, Any]], chunk: list[Row]) -> None:
    """Replace the places of faults within a chunk by the lines of the file."""
    for fault in faults:
        parts = str(fault.get("pointer", "")).split("/")
        numbers = [part for part in parts if part.isdigit()]
        if numbers and int(numbers[0]) < len(chunk):
            rest = "/".join(parts[parts.index(numbers[0]) + 1 :])
            fault["pointer"] = f"line {chunk[int(numbers[0])].line} {rest}".strip()


def check(rows: Iterable[Row], batch: Batch, *, as_json: bool) -> None:
    """Check every row as the server would, without one, and say what would be submitted.

    Raises:
        Refused: some rows are wrong; the first of them were named on stderr.
    """
    kinds: Counter[str] = Counter()
    faults = 0
    for row in rows:
        try:
            request = batch.request(row)
            problem = fault_of(request, batch)
        except Refused as error:
            problem, request = error.message.removeprefix(f"line {row.line}: "), {}
        if problem is None:
            kinds[f"{request['kind']} with {request.get('model') or 'the default model'}"] += 1
            continue
        faults += 1
        if faults <= SHOWN_FAULTS:
            hint(f"line {row.line}: {clean(problem)}")
    if as_json:
        emit_json({"rows": kinds.total(), "faults": faults, "kinds": dict(kinds)})
    else:
        for kind, count in kinds.items():
            click.echo(f"{count:,} {kind}")
    if faults:
        raise Refused(f"{faults:,} of {kinds.total() + faults:,} rows are wrong; nothing was submitted")


def fault_of(request: dict[str, Any], batch: Batch) -> str | None:
    """Return what is wrong with a request, or None."""
    from pydantic import ValidationError

    from pixelkiln_shared.jobs import JobRequest
    from pixelkiln_shared.kinds import INPUTS

    fields = dict(request["input"])
    for name in picture_files(fields):
        path = batch._folder / fields[name]
        if not path.is_file():
            return f"{path}: no such file"
        fields[name] = {"upload": "checked"}
    try:
        envelope = JobRequest.model_validate({**request, "input": fields})
        INPUTS[envelope.kind].model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return None


def _chunks(rows: Iterable[Row]) -> Iterator[tuple[list[Row], bool]]:
    """Yield the rows in chunks, each with whether it is the last."""
    from pixelkiln.client.flows import CHUNK_ROWS

    iterator = iter(rows)
    chunk = list(islice(iterator, CHUNK_ROWS))
    while chunk:
        following = list(islice(iterator, CHUNK_ROWS))
        yield chunk, not following
        chunk = following


COMMANDS = {"submit": submit}
