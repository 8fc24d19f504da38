"""An operator's catalogue file, changed in place: comments and order stay, only pins are replaced or added.

The standard library reads TOML but does not write it. So lines are changed, and the result is only taken when
it reads as exactly what was meant.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelkiln_shared.errors import Misconfigured

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SOURCE = re.compile(r"\s*source\s*=")

_Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """What one part of a model was found to be. `part` is "" for the model itself, else `companions.NAME`."""

    part: str
    source: str
    sha256: Mapping[str, str]

    def path(self, model_id: str) -> _Path:
        """Return where the part's table is in the file."""
        return ("models", model_id, *(self.part.split(".", 1) if self.part else ()))


def section(model_id: str, pin: Pin) -> str:
    """Return the TOML table of a part's hashes."""
    lines = [f"[{_dotted((*pin.path(model_id), 'sha256'))}]"]
    return "\n".join(
        [*lines, *(f"{_quoted(path)} = {_quoted(digest)}" for path, digest in pin.sha256.items())]
    )


def pinned(text: str, model_id: str, pins: Sequence[Pin], *, where: str) -> str:
    """Return the file's text with the pins in it.

    Raises:
        Misconfigured: it is not TOML, lacks the model, or is written in a way that cannot be changed here.
    """
    before = _parsed(text, where)
    if model_id not in before.get("models", {}):
        raise Misconfigured(f"{where} has no [models.{model_id}]; pins go where the model is defined")
    expected = copy.deepcopy(before)
    lines = text.splitlines()
    for pin in pins:
        table = expected
        for name in pin.path(model_id):
            table = table.setdefault(name, {})
        table |= {"source": pin.source, "sha256": dict(pin.sha256)}
        lines = _with_source(lines, pin.path(model_id), pin.source)
        lines = _with_section(lines, (*pin.path(model_id), "sha256"), section(model_id, pin))
    after = "\n".join(lines) + "\n"
    try:
        right = tomllib.loads(after) == expected
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        raise Misconfigured(
            f"{where}: [models.{model_id}] is written in a way that cannot be changed here (inside braces, "
            "say); put the table above into it by hand"
        )
    return after


def _with_source(lines: list[str], path: _Path, source: str) -> list[str]:
    start, end = _span(lines, path)
    return [
        f"source = {_quoted(source)}" if start <= number < end and _SOURCE.match(line) else line
        for number, line in enumerate(lines)
    ]


def _with_section(lines: list[str], path: _Path, section: str) -> list[str]:
    start, end = _span(lines, path)
    if start == end:
        return [*lines, "", *section.splitlines()]
    while end > start + 1 and not _content(lines[end - 1]):  # blank lines and comments belong to what follows
        end -= 1
    return [*lines[:start], *section.splitlines(), *lines[end:]]


def _span(lines: list[str], path: _Path) -> tuple[int, int]:
    """Return the lines of a table, its header included, end exclusive; empty where it is not there."""
    headers = [(number, found) for number, line in enumerate(lines) if (found := _header(line)) is not None]
    for place, (number, found) in enumerate(headers):
        if found == path:
            return number, headers[place + 1][0] if place + 1 < len(headers) else len(lines)
    return 0, 0


def _header(line: str) -> _Path | None:
    """Return the table that a line begins, if it does."""
    if not line.lstrip().startswith("["):
        return None
    try:
        table: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    path = []
    while isinstance(table, dict) and len(table) == 1:
        name, table = next(iter(table.items()))
        path.append(name)
    return tuple(path)


def _content(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{where}: {error}") from error


def _dotted(path: _Path) -> str:
    return ".".join(name if _BARE.fullmatch(name) else _quoted(name) for name in path)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a TOML basic string takes the same escapes
