"""What reaches the terminal: data on stdout, the rest on stderr, never a control character of a server."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
COLOURS = {
    "succeeded": "green",
    "running": "cyan",
    "failed": "red",
    "canceled": "yellow",
    "canceling": "yellow",
    "expired": "yellow",
}


def clean(text: str) -> str:
    """Return text safe to print: no escape sequences, control or direction-changing characters, one line.

    Prompts and messages of other people end up in listings; a terminal would obey what they contain.
    """
    text = _ESCAPES.sub("", text)
    return "".join(
        " " if c in "\n\t\r" else c for c in text if c in "\n\t\r" or unicodedata.category(c)[0] != "C"
    )


def hint(text: str) -> None:
    """Say something helpful on stderr."""
    click.echo(text, err=True)


def emit_json(value: Any) -> None:
    """Print data as JSON on stdout; pydantic models as the API gave them."""
    if isinstance(value, list):
        value = [_plain(item) for item in value]
    click.echo(json.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns on stdout; a column named STATUS is coloured on a terminal."""
    cells = [list(header)] + [[clean(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for number, row in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if number:
            padded = [_coloured(cell) for cell in padded]
        click.echo("  ".join(padded).rstrip())


def _coloured(cell: str) -> str:
    colour = COLOURS.get(cell.strip())
    return click.style(cell, fg=colour) if colour else cell


def age(moment: datetime) -> str:
    """Say how long ago something was: `12s`, `5m`, `3h`, `2d`."""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def shorten(text: str, width: int) -> str:
    """Return text of at most `width` characters, with an ellipsis where something is missing."""
    text = clean(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def interactive() -> bool:
    """Tell whether progress can be drawn in place."""
    return sys.stderr.isatty()
