"""Rows of CSV and JSONL files as job requests, each with its line number for messages."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelkiln.cli.faults import Refused
from pixelkiln.cli.make import read_stdin
from pixelkiln.cli.options import literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row. `key` identifies it within its file: a hash of its content and how often that came before."""

    line: int
    key: str
    fields: dict[str, Any]


def read_rows(source: str, renames: Mapping[str, str]) -> Iterator[Row]:
    """Yield the rows of a .csv or .jsonl file, or of JSONL on stdin for `-`.

    Args:
        source: the file.
        renames: from column to field name: `{"caption": "prompt"}`.

    Raises:
        Refused: the file cannot be read, or a line is neither a JSON object nor a CSV row.
    """
    seen: Counter[str] = Counter()
    table = source.lower().endswith(".csv")
    for line, raw in _lines(source):
        fields = {renames.get(name, name): value for name, value in raw.items()}
        if table:
            fields = {name: cell(name, value) for name, value in fields.items()}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:24]
        seen[digest] += 1
        yield Row(line=line, key=f"{digest}.{seen[digest]}", fields=fields)


def _lines(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if source == "-":
        yield from _jsonl(io.StringIO(_decoded(read_stdin(), "stdin")), "stdin")
        return
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in {".csv", ".jsonl", ".ndjson"}:
        raise Refused(f"{source}: only .csv and .jsonl files, or `-` for JSONL on stdin")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _csv(file, source) if suffix == ".csv" else _jsonl(file, source)
    except OSError as error:
        raise Refused(f"{source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Refused(f"{source}: not UTF-8 text") from error


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{source}: not UTF-8 text") from error


def _jsonl(file: io.TextIOBase | Any, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise Refused(f"{source}, line {number}: {error.msg}") from error
        if not isinstance(row, dict):
            raise Refused(f"{source}, line {number}: not a JSON object")
        yield number, row


def _csv(file: Any, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file)
    try:
        for row in reader:
            if None in row:
                raise Refused(f"{source}, line {reader.line_num}: more cells than columns")
            yield reader.line_num, {name: value for name, value in row.items() if value}
    except csv.Error as error:
        raise Refused(f"{source}, line {reader.line_num}: {error}") from error


def cell(name: str, value: str) -> Any:
    """Read a cell of a table: fields that hold numbers, lists or settings are parsed, text stays as it is."""
    from pixelkiln.client.requests import text_fields

    if name in text_fields():
        return value
    if value[:1] in "[{":
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return literal(value)
