"""Fetch a model's weights while online, and pin them: the revision found, and the hash of each file."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import Misconfigured
from pixelkiln_worker import weights
from pixelkiln_worker.models.catalogue_file import Pin, pinned, section
from pixelkiln_worker.models.verify import parts_of

_COMMIT = re.compile(r"[0-9a-f]{40}")


def pull(entry: ModelEntry, file: Path | None) -> None:
    """Fetch what is not here yet, print the hashes, and write them into `file` if one is named.

    Raises:
        ModelUnavailable: the source does not answer or has no such model, or a file is not the one named.
        Misconfigured: the file cannot take the hashes; nothing was written.
    """
    pins = []
    for part, source in parts_of(entry):
        found = weights.resolve(source)
        size_bytes = sum((found.folder / path).stat().st_size for path in found.sha256)
        print(f"# {part or entry.id}: {len(found.sha256)} files, {size_bytes / 1e6:.1f} MB in {found.folder}")
        pins.append(Pin(part=part, source=_pinned_source(source, found), sha256=found.sha256))
    if not pins:
        print(f"# {entry.id} needs no weights")
        return
    for pin in pins:
        print(section(entry.id, pin))
    if file is not None:
        _write(file, pinned(file.read_text("utf-8"), entry.id, pins, where=str(file)))
        print(f"# written into {file}")


def _pinned_source(entry: ModelEntry, found: weights.Weights) -> str:
    """Return the source; a branch or tag of the hub becomes the commit that it meant just now."""
    if entry.source.startswith("hub:") and _COMMIT.fullmatch(found.folder.name):
        return f"{entry.source.partition('@')[0]}@{found.folder.name}"
    return entry.source


def _write(file: Path, text: str) -> None:
    """Replace a file as a whole or not at all."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as scratch:
            scratch.write(text)
        os.chmod(scratch.name, file.stat().st_mode & 0o777)
        os.replace(scratch.name, file)
    except OSError as error:
        raise Misconfigured(f"{file} cannot be written: {error.strerror}") from error
